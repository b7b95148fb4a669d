"""A tiny random Qwen2: a text model whose keys have a large bias, as those of its first layers do."""

from __future__ import annotations

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

VOCABULARY = 96


def make_qwen2(seed: int = 0, bias: float = 20.0) -> Qwen2ForCausalLM:
    """Three layers, two query heads a key head; `bias` is the size of what is added to keys before RoPE."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = Qwen2ForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)
        for layer in model.model.layers:
            layer.self_attn.k_proj.bias.normal_().mul_(bias)
    return model
