"""What a prompt costs a model: visual tokens in each decoder layer, KV cache bytes, prefill arithmetic, disk.

KV bytes are counted in the cache itself after the prefill of one question, scales and zero points included
(quota/attention/size.py).
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from quota.attention.size import cache_bytes
from quota.checkpoint.save import RECIPE_FILE
from quota.models import family
from quota.prompts import build_inputs
from quota.pruning.pruner import is_pruned, record
from quota.samples import Sample


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


def disk_bytes(folder: Path) -> int:
    """Bytes of a checkpoint's weights and recipe; tokenizer and configuration are the same for all variants."""
    return sum(file.stat().st_size for file in [*folder.glob("*.safetensors"), *folder.glob(RECIPE_FILE)])
