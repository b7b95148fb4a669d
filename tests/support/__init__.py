"""What tests of several rooms share: tiny models, prompts, processors, and the naive decoder."""
