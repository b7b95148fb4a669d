"""The KV cache of a deployed model: packed integers, quantised as they are appended.

    x ~ zero + scale * q,   q in 0 .. 2^bits - 1       asymmetric; one float16 scale and zero per token and head

`update` returns what was stored, so attention in the prefill sees the very values that decoding will see; there is one
execution form. Keys are rotated by a Hadamard matrix per head (after RoPE) before they are quantised and rotated back
when read: it spreads their outlier channels, for which the whole head would otherwise pay with its scale. A scheme with
learned transforms has something in front of that (quota/attention/keys.py): keys read as numbers come back
less their mean, which attention does not see. Where a centre stands before RoPE, this layer takes it out and adds it
again; it is told how far each token is turned (quota/attention/turns.py).

A prefill stores keys and values by one call of the backend, which also gives what attention reads of them. A decoding
step, one new token a sample, reads the packed integers themselves: it is one call that stores, into memory with room
for it, and one that attends. `update` then returns a stand-in without memory, and quota's attention function
(quota/attention/function.py) asks the layer to attend. The backend is the one that `quota.ops` chooses.

quota/attention/hook.py puts these layers into the cache objects that pass through a model's decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from quota import ops
from quota.attention.function import from_cache
from quota.attention.keys import KeyTransform, key_transforms
from quota.attention.slots import SlotLayer, append, has_room, with_room
from quota.attention.state import reads_packed
from quota.attention.turns import Turns, turn_table, turned, turned_logits
from quota.errors import QuotaError
from quota.ops.interface import Backend, CacheSpec, PackedTensor
from quota.ops.kv_integer import packed_width
from quota.scheme import QuantizationScheme


class QuantizedLayer(SlotLayer):
    """One decoder layer's cache under a scheme.

    `keys` and `values` are packed uint8 [B, H, T, D * kv_bits / 8]; their scales and zeros are float16 [B, H, T, 1].
    """

    tensors = ("keys", "key_scale", "key_zero", "values", "value_scale", "value_zero")
    spec: CacheSpec

    def __init__(
        self, scheme: QuantizationScheme, transform: KeyTransform | None = None, window: int | None = None
    ) -> None:
        super().__init__(window)
        self.scheme = scheme
        self.transform = transform
        self._made: tuple[PackedTensor, PackedTensor] | None = None

    @property
    def turning(self) -> Tensor | None:
        """The centres [G, D] before RoPE, if there are any."""
        return None if self.transform is None else self.transform.turning

    def packed(self) -> tuple[PackedTensor, PackedTensor]:
        """Keys, which are transformed and rotated, and values, which are not."""
        keys, values = self._whole()
        return keys.first(self.held), values.first(self.held)

    def attend(self, query: Tensor, valid: Tensor | None, scaling: float) -> Tensor:
        """Attention of one query a sample [B, H, 1, D] over the `valid` [B, T] slots -> [B, H, 1, D]."""
        added = None
        if self.turning is not None:
            added = scaling * turned_logits(query, self.turning, self._table(0, self.held))
        return self._backend().decode_attention(query, *self._whole(), valid, scaling, self.held, added)

    def nbytes(self) -> int:
        """As of other layers, with a share of the table of turns."""
        return super().nbytes() + (0 if self.turns is None else self.turns.nbytes(self.seen))

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.turns: Turns | None = None

    def _each_sample(self, change: Callable[[Tensor], Tensor]) -> None:
        super()._each_sample(change)
        if self.turns is not None:
            # Shared again from the next pass on.
            self.turns = Turns(change(self.turns.table), layers=1)

    def _table(self, first: int, end: int) -> Tensor:
        """The turns [B, T, D] of the tokens in slots from `first` to `end`, the last; those of empty slots are any."""
        if self.turns is None:
            raise QuotaError("keys have a centre before RoPE and nobody said how far they turn; run the whole decoder")
        if self.in_order:
            return self.turns.table.narrow(1, self.seen - (end - first), end - first)
        rows = self._memory["positions"][:, first:end].long().clamp(min=0).unsqueeze(2)
        return self.turns.table.gather(1, rows.expand(-1, -1, self.spec.width))

    def _whole(self) -> tuple[PackedTensor, PackedTensor]:
        """All memory, that for later tokens too; the same objects for as long as it does not move."""
        made = self._made
        if made is None or made[0].packed is not self._memory["keys"]:
            keys, key_scale, key_zero, values, value_scale, value_zero = (self._memory[name] for name in self.tensors)
            bits, width = self.spec.bits, self.spec.width
            transform = None if self.transform is None else self.transform.operand()
            self._made = made = (
                PackedTensor(keys, key_scale, key_zero, bits, width, self.spec.hadamard, transform),
                PackedTensor(values, value_scale, value_zero, bits, width, 0),
            )
        return made

    def _store(self, keys: Tensor, values: Tensor, held: int) -> tuple[Tensor, Tensor] | None:
        width, bits, new = keys.shape[3], self.scheme.kv_bits, keys.shape[2]
        if not held:
            self.spec = CacheSpec(bits, width, self.scheme.hadamard_for(width))
        if not has_room(self._memory.get("keys"), held + new, 2):
            kinds = [(packed_width(width, bits), torch.uint8), *[(1, torch.float16)] * 2] * 2
            for name, (numbers, dtype) in zip(self.tensors, kinds, strict=True):
                shape = (*keys.shape[:3], numbers)
                self._memory[name] = with_room(self._memory.get(name), held, shape, 2, dtype, keys.device)
        # What was there before would have to be read, too.
        read = not held and not reads_packed(new)
        center = None if self.turning is None else turned(self.turning, self._table(held, held + new))
        if center is not None:
            keys = (keys - center).to(keys.dtype)
        fresh = self._backend().store_kv(keys, values, self._whole(), held, read)
        if fresh is None:
            return None
        read_keys = fresh[0] if center is None else (fresh[0] + center).to(keys.dtype)
        return from_cache(read_keys, self), fresh[1]

    def _read(self, new: int) -> tuple[Tensor, Tensor]:
        if reads_packed(new):
            shape = (*self._memory["keys"].shape[:2], self.held, self.spec.width)
            nothing = torch.full((), torch.nan, dtype=self.dtype, device=self.device).expand(shape)
            return from_cache(nothing, self), nothing
        backend = self._backend()
        keys, values = (backend.dequantize_kv(stored, self.dtype) for stored in self.packed())
        if self.turning is not None:
            keys = (keys + turned(self.turning, self._table(0, self.held))).to(self.dtype)
        return from_cache(keys, self), values

    def _backend(self) -> Backend:
        return ops.for_cache(self.spec, self.device)


def new_layer(
    scheme: QuantizationScheme | None, transform: KeyTransform | None = None, window: int | None = None
) -> SlotLayer:
    """An empty cache layer under this scheme; without one, or with 16 bits, it does not quantise."""
    return SlotLayer(window) if scheme is None or scheme.kv_bits == 16 else QuantizedLayer(scheme, transform, window)


def adopt(
    cache: Cache,
    layers: nn.ModuleList,
    scheme: QuantizationScheme | None,
    windows: Sequence[int | None] | None = None,
) -> None:
    """Replace the layers of an empty DynamicCache by ours, one for each of the decoder's `layers`, in place.

    One that has them is left as it is.
    """
    if type(cache) is not DynamicCache or cache.offloading:
        kind = "an offloaded cache" if getattr(cache, "offloading", False) else type(cache).__name__
        raise QuotaError(f"{kind} cannot hold a packed, pruned KV cache; use the default (dynamic) cache")
    if any(isinstance(layer, SlotLayer) for layer in cache.layers):
        stored = getattr(new_layer(scheme), "scheme", None)
        schemes = [getattr(layer, "scheme", None) for layer in cache.layers]
        if any(each is not stored and each != stored for each in schemes):
            raise QuotaError("this cache was filled under another scheme; start with a new cache")
        return
    for layer in cache.layers:
        if type(layer) is not DynamicLayer and type(layer) is not DynamicSlidingWindowLayer:
            raise QuotaError(f"{type(layer).__name__} is not supported; full and sliding attention layers are")
        if layer.get_seq_length():
            raise QuotaError("this cache was filled before quota was attached to the model; start with a new cache")
    # A cache made without a configuration would append layers of its own kind.
    cache.layer_class_to_replicate = None
    ends = windows or [None] * len(layers)
    fresh = [new_layer(scheme, *each) for each in zip(key_transforms(layers), ends, strict=True)]
    if any(getattr(layer, "record_past", False) for layer in cache.layers):
        for layer in fresh:
            layer.activate_past_recording()
    cache.layers[:] = fresh


def say_turns(cache: Cache, batch: int, cos: Tensor, sin: Tensor) -> None:
    """Tell the layers of a cache how far RoPE turns the tokens that come next: cos and sin [B or 1, T, D].

    Only layers whose keys have a centre before RoPE want to know; they share one table.
    """
    layers = [layer for layer in cache.layers if isinstance(layer, QuantizedLayer) and layer.turning is not None]
    if not layers:
        return
    known, seen = layers[0].turns, layers[0].seen
    new = turn_table(cos, sin).expand(batch, -1, -1)
    turns = Turns(append(None if known is None else known.table, seen, new, 1), len(layers))
    for layer in layers:
        layer.turns = turns
