"""Quantisers, the rotation in front of them, GPTQ, the quantised linear layer and the quantised KV cache."""
