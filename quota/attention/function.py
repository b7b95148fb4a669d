"""quota's own attention function: it measures what each token receives, and it reads the packed cache.

    inter_i = 1/H sum_h sum_{j in text}   A_h[j, i]
    intra_i = 1/H sum_h sum_{k in visual} A_h[k, i]           (docs/method.md, equations 6-9)
    last_i  = 1/H sum_h A_h[last text token, i]

The function is registered with transformers' `AttentionInterface` and switched on for as long as it is needed, by the
pass that needs it (quota/attention/state.py):

    observe   for one decoder layer: A is the softmax of the very queries and keys of the pass, so `output_attentions`,
              eager attention and a second forward pass are all avoided
    watch     for several: their queries and keys are added up (quota/attention/moments.py)
    deploy    for a pass over a quantised cache: attention is then the backend's. In a prefill it gives output and sums
              from one softmax; in a decoding step it reads the packed integers
    whole     for a block of a quantised vision tower: attention of all tokens to all is the backend's

Under a quantised cache observing changes no bit, since the same function runs without it. In a full-precision model it
changes none either: the output stays that of the implementation which the user has chosen, and so do the masks. Those
of a deployed pass are sdpa's.

Most decoders are causal, and of a mask only the keys that exist matter. Where attention is not (images that see
themselves, sliding windows: `causal=False`), every query's keys are read from the layer's mask.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from quota import ops
from quota.attention.masks import as_truth, keys_of_all
from quota.attention.observation import Observation
from quota.attention.state import NAME, attending, chosen, current, implementation, reads_packed


class PackedLayer(Protocol):
    """A cache layer that holds integers."""

    def attend(self, query: Tensor, valid: Tensor | None, scaling: float) -> Tensor:
        """Attention of one query a sample [B, H, 1, D] over the `valid` [B, T] slots -> [B, H, 1, D]."""
        ...


@contextmanager
def observe(config: PreTrainedConfig, observation: Observation, causal: bool = True) -> Iterator[Observation]:
    """Fill `observation` from the attention call made inside the block by a layer with this (text) config."""
    with attending(config, observation=observation, causal=causal):
        yield observation


@contextmanager
def deploy(config: PreTrainedConfig, causal: bool = True) -> Iterator[None]:
    """Let layers with this (text) config attend by the backend inside the block, to a quantised cache."""
    with attending(config, deployed=True, causal=causal, observation=None):
        yield


@contextmanager
def whole(config: PreTrainedConfig) -> Iterator[None]:
    """Let layers with this (vision) config attend by the backend inside the block, where it fits what they ask for."""
    with attending(config, whole=True):
        yield


def from_cache(keys: Tensor, layer: PackedLayer) -> Tensor:
    """Mark `keys` as those of a quantised cache layer, for the attention function; returns them."""
    keys.quota_layer = layer  # pyright: ignore[reportAttributeAccessIssue]
    return keys


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visible: Tensor,
    scaling: float,
    observation: Observation | None = None,
    pairs: bool = False,
) -> Tensor:
    """Attention of the last T of S tokens by the backend: query [B, H, T, D], key and value [B, G, S, D] -> as query.

    `visible` [B, S] bool says which keys may be attended to, by no token before them; with `pairs` [B, T, S] says all.
    `observation` is filled by the way.
    """
    sets = {} if observation is None else observation.sets()
    if sets:
        rows = torch.stack(list(sets.values()), dim=1)
    else:
        rows = query.new_zeros(len(query), 0, query.shape[2], dtype=torch.bool)
    attention = ops.for_attention(query.device, pairs=pairs).attention
    output, sums = attention(query.detach(), key.detach(), value.detach(), rows, visible, scaling)
    if observation is not None:
        new = query.shape[2]
        for name, received in zip(sets, sums[..., -new:].unbind(dim=1), strict=True):
            setattr(observation, name, received)
        if "keys" in observation.wanted:
            observation.states = key.detach()[:, :, -new:].transpose(1, 2).flatten(2)
    return output


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    now = current(_config(module))
    if now.whole:
        output = _whole(module, query, key, value, attention_mask, **kwargs)
        if output is not None:
            return output.transpose(1, 2), None
    if now.moments is not None:
        now.moments.add(query, key)
    observation, layer = now.observation, getattr(key, "quota_layer", None)
    if observation is not None and not observation.measures:
        observation = None
    if observation is None and not (now.deployed and layer is not None):
        return _as_chosen(module, query, key, value, attention_mask, **kwargs)
    scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
    if layer is not None and reads_packed(query.shape[2]):
        valid = None if attention_mask is None else _visible(attention_mask, key)
        return layer.attend(query, valid, scaling).transpose(1, 2), None
    visible = _visible(attention_mask, key) if observation is None else observation.keys
    pairs = None if now.causal else attention_mask
    if pairs is not None:
        visible = as_truth(pairs)[:, 0].expand(len(query), -1, -1)
    output = attend(query, key, value, visible, scaling, observation, pairs is not None)
    if layer is not None:
        return output.transpose(1, 2), None
    return _as_chosen(module, query, key, value, attention_mask, **kwargs)


def _whole(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> Tensor | None:
    """[B, H, T, D] of the backend in place of sdpa's, which reads no other arguments; None where it does not fit."""
    causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    visible = keys_of_all(attention_mask, key)
    misfits = {
        "needs gradients": torch.is_grad_enabled() and query.requires_grad,
        "drops attention weights out": kwargs.get("dropout"),
        "adds a bias to its logits": kwargs.get("position_bias") is not None,
        "is causal": causal and attention_mask is None,
        "has a mask for each query": visible is None,
        "has values of another width than its keys": key.shape != value.shape,
    }
    for misfit, holds in misfits.items():
        if holds:
            ops.lack(f"attention: {type(module).__name__} {misfit}")
            return None
    assert visible is not None
    scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
    nobody = query.new_zeros(len(query), 0, query.shape[2], dtype=torch.bool)
    return ops.for_attention(query.device).attention(query, key, value, nobody, visible, scaling, causal=False)[0]


def _as_chosen(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    # Eager attention has no entry in the interface: each modelling file brings its own.
    eager = sys.modules[type(module).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS.get_interface(chosen(_config(module)), eager)(module, *args, **kwargs)


def _config(attention: Any) -> PreTrainedConfig:
    return attention.config


def _mask(*args: Any, config: PreTrainedConfig, **kwargs: Any) -> Any:
    name = implementation(config)
    make = sdpa_mask if name == NAME else ALL_MASK_ATTENTION_FUNCTIONS.get(name)
    # transformers makes none either for an implementation that it has no masks for.
    return None if make is None else make(*args, config=config, **kwargs)


def _visible(mask: Tensor | None, key: Tensor) -> Tensor:
    """[B, S] bool: keys that the mask [B, 1, T, S] leaves to the last query, before which all of them stand."""
    batch, length = key.shape[0], key.shape[2]
    if mask is None:
        return torch.ones(batch, length, dtype=torch.bool, device=key.device)
    return as_truth(mask)[:, 0, -1].expand(batch, -1)


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)
