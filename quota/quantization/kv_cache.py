"""The KV cache of a deployed model: packed integers, quantised as they are appended.

    x ~ zero + scale * q,   q in 0 .. 2^bits - 1       asymmetric; one float16 scale and zero per token and head

`update` returns what was stored, so attention in the prefill sees the very values that decoding will see; there is one
execution form. Keys are rotated by a Hadamard matrix per head (after RoPE) before they are quantised and rotated back
when read: it spreads their outlier channels, for which the whole head would otherwise pay with its scale.

`attach_cache` puts these layers into the cache objects that pass through a model's decoder. That happens in a hook, so
`generate` and plain calls, with `use_cache` or without, all attend to quantised keys and values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from quota.errors import QuotaError
from quota.models import family
from quota.quantization.hadamard import block_hadamard
from quota.quantization.kv_slots import SlotLayer
from quota.scheme import QuantizationScheme


class QuantizedLayer(SlotLayer):
    """One decoder layer's cache under a scheme.

    `keys` and `values` are packed uint8 [B, H, T, D * kv_bits / 8], their scales and zeros float16 [B, H, T, 1].
    """

    tensors = ("keys", "key_scale", "key_zero", "values", "value_scale", "value_zero")

    def __init__(self, scheme: QuantizationScheme) -> None:
        super().__init__()
        self.scheme = scheme

    def _encode(self, keys: Tensor, values: Tensor) -> dict[str, Tensor]:
        self.width = keys.shape[-1]
        bits = self.scheme.kv_bits
        q_keys, key_scale, key_zero = quantize_kv(self._rotate(keys.float()), bits)
        q_values, value_scale, value_zero = quantize_kv(values, bits)
        stored = (pack(q_keys, bits), key_scale, key_zero, pack(q_values, bits), value_scale, value_zero)
        return dict(zip(self.tensors, stored, strict=True))

    def _decode(self) -> tuple[Tensor, Tensor]:
        bits, width = self.scheme.kv_bits, self.width
        keys, key_scale, key_zero, values, value_scale, value_zero = (getattr(self, name) for name in self.tensors)
        # The rotation is its own inverse.
        keys = self._rotate(dequantize_kv(unpack(keys, bits, width), key_scale, key_zero))
        values = dequantize_kv(unpack(values, bits, width), value_scale, value_zero)
        return keys.to(self.dtype), values.to(self.dtype)

    def _rotate(self, keys: Tensor) -> Tensor:
        return block_hadamard(keys, self.scheme.hadamard_for(self.width))


def new_layer(scheme: QuantizationScheme | None) -> SlotLayer:
    """An empty cache layer under this scheme; without one, or with 16 bits, it does not quantise."""
    return SlotLayer() if scheme is None or scheme.kv_bits == 16 else QuantizedLayer(scheme)


def quantize_kv(x: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise [..., D] over its last dimension: q uint8 [..., D], scale and zero float16 [..., 1].

    QuotaError if x holds NaN, infinity or anything beyond float16, in which scale and zero are kept.
    """
    x = x.float()
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    levels = 2**bits - 1
    smallest = torch.finfo(torch.float16).tiny
    scale, zero = ((high - low) / levels).clamp(min=smallest).half(), low.half()
    if not bool((scale.isfinite() & zero.isfinite()).all()):
        raise QuotaError("keys or values hold NaN, infinity or numbers beyond 65504; check the model in float32")
    # Rounded against the stored scale and zero, not against the exact ones.
    q = ((x - zero.float()) / scale.float()).round().clamp(0, levels)
    return q.to(torch.uint8), scale, zero


def dequantize_kv(q: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """zero + scale * q, float32 [..., D]."""
    return q.float() * scale.float() + zero.float()


def pack(q: Tensor, bits: int) -> Tensor:
    """Pack numbers of `bits` bits: uint8 [..., D] -> uint8 [..., D * bits / 8], D a multiple of 8.

    The bits of a number are split into fields that fill a byte evenly (3 bits: two low ones, then one high one), and
    the packed fields follow one another.
    """
    if q.shape[-1] % 8:
        raise QuotaError(f"a head of {q.shape[-1]} channels cannot be packed: not a multiple of 8; use kv_bits=16")
    packed, start = [], 0
    for width in _fields(bits):
        values = (q >> start & 2**width - 1).unflatten(-1, (-1, 8 // width))
        places = torch.arange(0, 8, width, dtype=torch.uint8, device=q.device)
        # The fields do not overlap: their sum is their union.
        packed.append((values << places).sum(dim=-1, dtype=torch.uint8))
        start += width
    return torch.cat(packed, dim=-1)


def unpack(packed: Tensor, bits: int, width: int) -> Tensor:
    """Undo `pack`: uint8 [..., width * bits / 8] -> uint8 [..., width]."""
    fields = _fields(bits)
    q, start = torch.zeros((), dtype=torch.uint8, device=packed.device), 0
    for field, values in zip(fields, packed.split([width * field // 8 for field in fields], dim=-1), strict=True):
        places = torch.arange(0, 8, field, dtype=torch.uint8, device=packed.device)
        q = q | (values.unsqueeze(-1) >> places & 2**field - 1).flatten(-2) << start
        start += field
    return q


def _fields(bits: int) -> list[int]:
    return [2, 1] if bits == 3 else [bits]


class CacheHook:
    """Puts `scheme`'s layers into every cache that enters a model's decoder, until `detach`."""

    def __init__(self, model: PreTrainedModel, scheme: QuantizationScheme | None) -> None:
        self.model: Any = model
        self.scheme = scheme
        self._handles: list[RemovableHandle] = []
        self._borrowed = False

    def attach(self) -> None:
        """Take effect, in place of a hook attached earlier."""
        if isinstance(earlier := getattr(self.model, "quota_cache", None), CacheHook):
            earlier.detach()
        decoder = family(self.model).text_model
        self._handles = [
            # First of all hooks: the Pruner looks for these layers.
            decoder.register_forward_pre_hook(self._before, with_kwargs=True, prepend=True),
            decoder.register_forward_hook(self._after),
        ]
        self.model.quota_cache = self

    def detach(self) -> None:
        """Leave the model as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if getattr(self.model, "quota_cache", None) is self:
            del self.model.quota_cache

    def _before(self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        cache, use_cache = kwargs.get("past_key_values"), kwargs.get("use_cache")
        # Without use_cache a new cache serves this one pass, and must not be taken for a past.
        self._borrowed = cache is None and not (decoder.config.use_cache if use_cache is None else use_cache)
        if cache is None:
            cache = DynamicCache(config=decoder.config)
        adopt(cache, len(decoder.layers), self.scheme)
        return args, kwargs | {"past_key_values": cache}

    def _after(self, decoder: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._borrowed:
            output.past_key_values = None


def attach_cache(model: PreTrainedModel, scheme: QuantizationScheme | None) -> CacheHook:
    """Make every forward pass of `model` use a cache under `scheme`; undo with `.detach()`.

    From then on a static, offloaded, sliding-window or foreign cache raises QuotaError when it is used.
    """
    hook = CacheHook(model, scheme)
    hook.attach()
    return hook


def adopt(cache: Cache, layers: int, scheme: QuantizationScheme | None) -> None:
    """Replace the layers of an empty DynamicCache by ours, in place; leave one that has them as it is."""
    if type(cache) is not DynamicCache or cache.offloading:
        kind = "an offloaded cache" if getattr(cache, "offloading", False) else type(cache).__name__
        raise QuotaError(f"{kind} cannot hold a packed, pruned KV cache; use the default (dynamic) cache")
    if any(isinstance(layer, SlotLayer) for layer in cache.layers):
        if any(getattr(layer, "scheme", None) != getattr(new_layer(scheme), "scheme", None) for layer in cache.layers):
            raise QuotaError("this cache was filled under another scheme; start with a new cache")
        return
    for layer in cache.layers:
        if type(layer) is not DynamicLayer:
            raise QuotaError(f"{type(layer).__name__} is not supported; full attention layers are")
        if layer.get_seq_length():
            raise QuotaError("this cache was filled before quota was attached to the model; start with a new cache")
    # A cache made without a configuration would append layers of its own kind.
    cache.layer_class_to_replicate = None
    cache.layers[:] = [new_layer(scheme) for _ in range(layers)]
