"""What a prompt costs a model: visual tokens in each decoder layer, KV cache bytes, prefill arithmetic, disk.

KV bytes are counted in the cache itself after the prefill of one question, scales and zero points included. A cache
that is not quantised counts two bytes a number, whatever type it was computed in: it is compared as the 16-bit
cache that one would deploy.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from quota.attention.cache import QuantizedLayer
from quota.attention.slots import SlotLayer
from quota.checkpoint.save import RECIPE_FILE
from quota.models import family
from quota.prompts import build_inputs
from quota.pruning.pruner import is_pruned, record
from quota.samples import Sample

_BYTES_OF_FLOAT = 2


@dataclass(frozen=True)
class Footprint:
    """What the prefill of one question leaves behind."""

    visual_tokens_per_layer: list[int]
    """Visual tokens that enter each decoder layer."""
    kv_bytes: int


def footprint(model: Any, processor: Any, sample: Sample) -> Footprint:
    """Prefill one question as `generate` would and count."""
    inputs = build_inputs(processor, [sample]).to(model.device)
    with torch.inference_mode(), record(model) if is_pruned(model) else nullcontext() as trace:
        cache = model(**inputs, use_cache=True, logits_to_keep=1).past_key_values
    if trace is not None:
        tokens = list(trace.tokens_per_layer)
    else:
        parts = family(model)
        visual = int(parts.visual_mask(inputs["input_ids"]).sum())
        tokens = [visual] * len(parts.decoder_layers)
    return Footprint(tokens, cache_bytes(cache))


def cache_bytes(cache: Any) -> int:
    """Bytes that a KV cache holds; keys and values that are not quantised count two bytes each."""
    return sum(_layer_bytes(layer) for layer in cache.layers)


def _layer_bytes(layer: Any) -> int:
    if isinstance(layer, QuantizedLayer):
        return layer.nbytes()
    numbers = layer.keys.numel() + layer.values.numel()
    return _BYTES_OF_FLOAT * numbers + (layer.positions.nbytes if isinstance(layer, SlotLayer) else 0)


def disk_bytes(folder: Path) -> int:
    """Bytes of a checkpoint's weights and recipe; tokenizer and configuration are the same for all variants."""
    return sum(file.stat().st_size for file in [*folder.glob("*.safetensors"), *folder.glob(RECIPE_FILE)])
