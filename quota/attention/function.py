"""quota's own attention function: it measures what each token receives, and it reads the packed cache.

    inter_i = 1/H sum_h sum_{j in text}   A_h[j, i]
    intra_i = 1/H sum_h sum_{k in visual} A_h[k, i]           (METHOD section 4, equations 6-9)
    last_i  = 1/H sum_h A_h[last text token, i]

The function is registered with transformers' `AttentionInterface` and switched on for as long as it is needed:

    observe   for one decoder layer: A is the softmax of the very queries and keys of the pass, so `output_attentions`,
              eager attention and a second forward pass are all avoided
    deploy    for a pass over a quantised cache: attention is then the backend's. In a prefill it gives output and sums
              from one softmax; in a decoding step it reads the packed integers

Under a quantised cache observing changes no bit, since the same function runs without it. In a full-precision model it
changes none either: the output stays that of the implementation which the user has chosen. Masks of a layer observed
there are made outside of the switch, for that implementation; those of a deployed pass are made inside, as sdpa's.

Most decoders are causal, and of a mask only the keys that exist matter. Where attention is not (images that see
themselves, sliding windows: `causal=False`), every query's keys are read from the layer's mask.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from quota import ops
from quota.attention.masks import as_truth

NAME = "quota"


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
    """[B, S] bool: keys that may be attended to; padding and empty slots may not. Where attention is not causal, the
    layer's mask says it instead."""
    wanted: Collection[str] = ("inter", "intra")
    """Which of the following to measure."""
    inter: Tensor | None = field(default=None, init=False)
    """[B, T] float32, attention that each token of this pass receives from the text."""
    intra: Tensor | None = field(default=None, init=False)
    """[B, T] float32, the same from the visual tokens."""
    last: Tensor | None = field(default=None, init=False)
    """[B, T] float32, the same from the last text token."""
    states: Tensor | None = field(default=None, init=False)
    """[B, T, G * D], the tokens' keys (wanted as "keys")."""

    def sets(self) -> dict[str, Tensor]:
        """Name of every sum that is wanted -> its queries, [B, T] bool."""
        queries = {"inter": lambda: self.text, "intra": lambda: self.visual, "last": self._final}
        return {name: rows() for name, rows in queries.items() if name in self.wanted}

    def _final(self) -> Tensor:
        return self.text & (self.text.flip(1).cumsum(dim=1).flip(1) == 1)


class PackedLayer(Protocol):
    """A cache layer that holds integers."""

    def attend(self, query: Tensor, valid: Tensor | None, scaling: float) -> Tensor:
        """Attention of one query a sample [B, H, 1, D] over the `valid` [B, T] slots -> [B, H, 1, D]."""
        ...


_chosen: ContextVar[str] = ContextVar("implementation that the user has chosen", default="eager")
_observation: ContextVar[Observation | None] = ContextVar("observation", default=None)
_deployed: ContextVar[bool] = ContextVar("deployed", default=False)
_causal: ContextVar[bool] = ContextVar("causal", default=True)


@contextmanager
def observe(config: PreTrainedConfig, observation: Observation, causal: bool = True) -> Iterator[Observation]:
    """Fill `observation` from the attention call made inside the block by a layer with this (text) config."""
    with _switched_on(config, causal):
        _observation.set(observation)
        try:
            yield observation
        finally:
            _observation.set(None)


@contextmanager
def deploy(config: PreTrainedConfig, causal: bool = True) -> Iterator[None]:
    """Let layers with this (text) config attend by the backend inside the block, to a quantised cache."""
    with _switched_on(config, causal):
        _deployed.set(True)
        try:
            yield
        finally:
            _deployed.set(False)


def reads_packed(queries: int) -> bool:
    """Whether the attention call that comes next, for so many queries a sample, does without the numbers themselves."""
    return queries == 1 and _deployed.get() and _observation.get() is None


def from_cache(keys: Tensor, layer: PackedLayer) -> Tensor:
    """Mark `keys` as those of a quantised cache layer, for the attention function; returns them."""
    keys.quota_layer = layer  # pyright: ignore[reportAttributeAccessIssue]
    return keys


@contextmanager
def _switched_on(config: PreTrainedConfig, causal: bool) -> Iterator[None]:
    implementation = config._attn_implementation
    _causal.set(causal)
    if implementation == NAME:
        yield
        return
    _chosen.set(implementation or "eager")
    config._attn_implementation = NAME
    try:
        yield
    finally:
        # After an interrupted pass this may come late, when the user has made another choice.
        if config._attn_implementation == NAME:
            config._attn_implementation = implementation


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    observation, layer = _observation.get(), getattr(key, "quota_layer", None)
    scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
    if observation is None and layer is None:
        raise RuntimeError(f"the {NAME!r} attention runs only inside quota.attention.function.observe or deploy")
    if layer is not None and reads_packed(query.shape[2]):
        valid = None if attention_mask is None else _visible(attention_mask, key)
        return layer.attend(query, valid, scaling).transpose(1, 2), None
    sets = {} if observation is None else observation.sets()
    if sets:
        rows = torch.stack(list(sets.values()), dim=1)
    else:
        rows = query.new_zeros(len(query), 0, query.shape[2], dtype=torch.bool)
    visible = _visible(attention_mask, key) if observation is None else observation.keys
    pairs = None if _causal.get() else attention_mask
    if pairs is not None:
        visible = as_truth(pairs)[:, 0].expand(len(query), -1, -1)
    attention = ops.for_attention(query.device, causal=pairs is None).attention
    output, sums = attention(query.detach(), key.detach(), value.detach(), rows, visible, scaling)
    if observation is not None:
        new = query.shape[2]
        for name, received in zip(sets, sums[..., -new:].unbind(dim=1), strict=True):
            setattr(observation, name, received)
        if "keys" in observation.wanted:
            observation.states = key.detach()[:, :, -new:].transpose(1, 2).flatten(2)
    if layer is not None:
        return output.transpose(1, 2), None
    # Eager attention has no entry in the interface: each modelling file brings its own.
    eager = sys.modules[type(module).__module__].eager_attention_forward
    implementation = ALL_ATTENTION_FUNCTIONS.get_interface(_chosen.get(), eager)
    return implementation(module, query, key, value, attention_mask, **kwargs)


def _visible(mask: Tensor | None, key: Tensor) -> Tensor:
    """[B, S] bool: keys that the mask [B, 1, T, S] leaves to the last query, before which all of them stand."""
    batch, length = key.shape[0], key.shape[2]
    if mask is None:
        return torch.ones(batch, length, dtype=torch.bool, device=key.device)
    return as_truth(mask)[:, 0, -1].expand(batch, -1)


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
