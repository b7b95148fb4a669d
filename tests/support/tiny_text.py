"""Tiny random text models, without pictures: a Llama, and a Qwen2, whose keys have a bias."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

VOCABULARY = 96
# Three layers, two query heads a key head, tied embeddings.
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}


def make_llama(seed: int = 0) -> LlamaForCausalLM:
    """Weights are large enough for attention to choose."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    _enlarge(model)
    return model


def make_qwen2(seed: int = 0, bias: float = 20.0) -> Qwen2ForCausalLM:
    """The same; `bias` is the size of what is added to keys before RoPE, large as in the first layers of real ones."""
    torch.manual_seed(seed)
    ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    model = Qwen2ForCausalLM(Qwen2Config(**SIZES, **ids)).eval()
    _enlarge(model)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.k_proj.bias.normal_().mul_(bias)
    return model


@torch.no_grad()
def _enlarge(model: PreTrainedModel) -> None:
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.mul_(4)
