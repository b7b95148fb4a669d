"""Models with real outliers, to try the quantiser on: what a small model trained here cannot show.

Weights come from packages of the registries, or from a file that the user has, and never from this repository; nothing
of those packages is run. Each testbed is a command, `quota testbed NAME`:

    llm       language models of the Llama kind (SmolLM2, Qwen2.5): perplexity of English prose
    dinov2    a vision tower of 12 blocks: output error of its layers on photographs
    vlm       both in one LLaVA, trained to answer questions about photographs (in the making: no adapter yet)
"""
