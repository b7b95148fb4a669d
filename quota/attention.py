"""Attention cues: how much attention each token receives, without returning attention weights.

    inter_i = 1/H sum_h sum_{j in text}   A_h[j, i]
    intra_i = 1/H sum_h sum_{k in visual} A_h[k, i]           (METHOD section 4, equations 6-9)

A is the softmax of the very queries and keys of the forward pass, so `output_attentions`, eager attention and a second
forward pass are all avoided. While `observe` is active, a decoder's attention goes through the function registered here
with transformers' `AttentionInterface`: it adds up the rows of A in chunks, never holding all of A, and then hands the
call unchanged to the implementation that the user has chosen.

The switch lasts for one decoder layer. Masks are made outside of it, for the user's own implementation, which is why no
mask function need be registered beside this one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "quota"

# Attention probabilities held at once, in numbers; 2^24 of them are 64 MiB.
_CHUNK = 1 << 24


@dataclass
class Observation:
    """What to add up in one attention call, and the sums once it has run.

    B samples, T queries of this forward pass, S keys of which the last T belong to the same tokens.
    """

    text: Tensor
    """[B, T] bool: queries that are text."""
    visual: Tensor
    """[B, T] bool: queries that are visual tokens."""
    keys: Tensor
    """[B, S] bool: keys that may be attended to; padding and empty slots may not."""
    implementation: str = field(default="", init=False)
    """The attention implementation that the user has chosen."""
    inter: Tensor | None = field(default=None, init=False)
    """[B, T] float32, attention that each token of this pass receives from the text."""
    intra: Tensor | None = field(default=None, init=False)
    """[B, T] float32, the same from the visual tokens."""


_active: ContextVar[Observation | None] = ContextVar("observation", default=None)


@contextmanager
def observe(config: PreTrainedConfig, observation: Observation) -> Iterator[Observation]:
    """Fill `observation` from the attention call made inside the block by a layer with this (text) config."""
    implementation = config._attn_implementation
    observation.implementation = implementation or "eager"
    _active.set(observation)
    config._attn_implementation = NAME
    try:
        yield observation
    finally:
        config._attn_implementation = implementation
        _active.set(None)


def attention_sums(query: Tensor, key: Tensor, scaling: float, rows: Tensor, keys: Tensor) -> Tensor:
    """Attention that each key receives from sets of queries, summed over the set and averaged over heads.

    Args:
        query: [B, H, T, D] after the rotary embedding. key: [B, G, S, D], G divides H; the last T keys are the
            queries' own tokens, and a query attends to no later one. scaling: factor of the logits.
        rows: [B, R, T] bool, R sets of queries. keys: [B, S] bool, keys that may be attended to.

    Returns [B, R, S] float32. Works in chunks of queries.
    """
    batch, heads, queries, width = query.shape
    groups, length = key.shape[1], key.shape[2]
    query = query.reshape(batch, groups, heads // groups, queries, width)
    transposed = key.float().transpose(-1, -2).unsqueeze(2)
    places = torch.arange(length, device=key.device)
    weights = rows.float()
    sums = weights.new_zeros(batch, rows.shape[1], length)
    step = max(1, _CHUNK // (batch * heads * length))
    for start in range(0, queries, step):
        chunk = slice(start, min(start + step, queries))
        logits = query[..., chunk, :].float() @ transposed * scaling
        last = places[length - queries :][chunk]
        visible = keys[:, None] & (places <= last[:, None])
        # The lowest number, not infinity: a padding query sees nothing, and its row has weight 0 but must not be NaN.
        logits.masked_fill_(~visible[:, None, None], torch.finfo(logits.dtype).min)
        sums += weights[..., chunk] @ logits.softmax(dim=-1).mean(dim=(1, 2))
    return sums


def naive_attention_sums(query: Tensor, key: Tensor, scaling: float, rows: Tensor, keys: Tensor) -> Tensor:
    """`attention_sums` with all of A at once, head by head: what it must equal."""
    heads, queries = query.shape[1], query.shape[2]
    length, shared = key.shape[2], query.shape[1] // key.shape[1]
    earlier = torch.ones(queries, length, dtype=torch.bool, device=key.device).tril(length - queries)
    sums = torch.zeros(query.shape[0], rows.shape[1], length, device=key.device)
    for head in range(heads):
        logits = query[:, head].float() @ key[:, head // shared].float().transpose(1, 2) * scaling
        allowed = earlier & keys[:, None]
        attention = logits.masked_fill(~allowed, torch.finfo(logits.dtype).min).softmax(dim=-1)
        sums += rows.float() @ attention / heads
    return sums


def _observed_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    observation = _active.get()
    if observation is None:
        raise RuntimeError(f"the {NAME!r} attention runs only inside quota.attention.observe")
    scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
    rows = torch.stack([observation.text, observation.visual], dim=1)
    own = slice(-query.shape[2], None)
    sums = attention_sums(query.detach(), key.detach(), scaling, rows, observation.keys)[..., own]
    observation.inter, observation.intra = sums.unbind(dim=1)
    # Eager attention has no entry in the interface: each modelling file brings its own.
    eager = sys.modules[type(module).__module__].eager_attention_forward
    implementation = ALL_ATTENTION_FUNCTIONS.get_interface(observation.implementation, eager)
    return implementation(module, query, key, value, attention_mask, **kwargs)


AttentionInterface.register(NAME, _observed_attention)
