"""A cache layer whose slots know which token they hold.

Pruning makes the layers of one KV cache differ in length, and the samples of a batch too. So every slot carries the
position of its token (-1: empty), kept tokens are right-aligned, and a layer has two lengths: the tokens it has *seen*,
which positions and `generate` count by, and the slots it *holds*, which masks are sized by. Beam search, multi-turn and
assisted decoding then need nothing special: they reorder, append and crop slots.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from quota.errors import QuotaError


class SlotLayer(CacheLayerMixin):
    """One decoder layer's cache, in the type that the model computes in.

    `keys` and `values` are [B, H, T, ...]. Subclasses may store others; each tensor named in `tensors` has samples
    first and slots third.
    """

    is_sliding = False
    is_croppable = True
    tensors: tuple[str, ...] = ("keys", "values")

    seen: int
    """Tokens seen, those without a slot included."""
    positions: Tensor
    """[B, T] int32: the token in each slot, counted from the start of the sequence; -1 if empty."""
    in_order: bool
    """Slot t holds token t in every sample, as in any other cache."""
    ragged: bool
    """Some sample has empty slots."""

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take batch size, type and device from the first keys; hold nothing yet."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.positions = torch.empty(key_states.shape[0], 0, dtype=torch.int32, device=self.device)
        self.is_initialized = True

    def expect(self, positions: Tensor, advance: int) -> None:
        """Say what the next `update` brings, if not simply the next tokens.

        `positions` [B, T] is the position of each new slot, -1 if empty; `advance` is how far the sequence moves on,
        counting tokens that get no slot.
        """
        self._expected = positions, advance

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values, [B, H, T, D] each, and return all that are stored, in the same type."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        batch, new = key_states.shape[0], key_states.shape[2]
        positions, advance = torch.arange(self.seen, self.seen + new, device=self.device), new
        if self._expected is not None:
            positions, advance = self._expected
            self._expected = None
            self.in_order = False
            self.ragged |= bool((positions < 0).any())
        self.positions = torch.cat([self.positions, positions.to(torch.int32).expand(batch, -1)], dim=1)
        self.seen += advance
        for name, tensor in self._encode(key_states, value_states).items():
            stored = getattr(self, name)
            setattr(self, name, tensor if stored is None else torch.cat([stored, tensor], dim=2))
        return self._decode()

    def keep(self, kept: Tensor) -> None:
        """Drop the slots not in `kept` [B, T] bool and right-align the others."""
        slots, filled = right_align(kept)
        self.in_order = False
        self.ragged = not bool(filled.all())
        for name in self.tensors:
            tensor = getattr(self, name)
            index = slots[:, None, :, None].expand(-1, tensor.shape[1], -1, tensor.shape[3])
            setattr(self, name, tensor.gather(2, index))
        self.positions = self.positions.gather(1, slots).masked_fill(~filled, -1)

    @property
    def held(self) -> int:
        """Slots, empty ones included."""
        return self.positions.shape[1] if self.is_initialized else 0

    def valid(self, attention_mask: Tensor | None) -> Tensor:
        """[B, T] bool: slots with a token, less those masked by `attention_mask` [B, tokens seen or more]."""
        filled = self.positions >= 0
        if attention_mask is None:
            return filled
        return filled & attention_mask.bool().gather(1, self.positions.long().clamp(min=0))

    def nbytes(self) -> int:
        """Bytes held: keys and values, with scales and zeros if any, and the positions of the slots."""
        if not self.is_initialized:
            return 0
        return sum(getattr(self, name).nbytes for name in (*self.tensors, "positions"))

    def get_seq_length(self) -> int:
        """Tokens seen."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(slots after the next update, position of the first of them in the mask).

        The offset lines up the newest slot with the newest token, so that a causal mask comes out right.
        """
        return self.held + query_length, self.seen - self.held

    def get_max_length(self) -> int:
        """-1: no maximum."""
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the newest `-tokens_to_remove` tokens; transformers counts them with a minus sign."""
        if tokens_to_remove > 0:
            raise QuotaError("crop takes a negative number: how many of the newest tokens to remove")
        if tokens_to_remove and self.is_initialized:
            in_order = self.in_order
            self.seen = max(0, self.seen + tokens_to_remove)
            self.keep((self.positions >= 0) & (self.positions < self.seen))
            self.in_order = in_order

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Make sample i what sample `beam_idx[i]` was."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these samples, in this order."""
        if self.is_initialized:
            for name in (*self.tensors, "positions"):
                setattr(self, name, getattr(self, name)[indices.to(self.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sample."""
        if self.is_initialized:
            for name in (*self.tensors, "positions"):
                setattr(self, name, getattr(self, name).repeat_interleave(repeats, dim=0))

    def reset(self) -> None:
        """Forget everything."""
        for name in self.tensors:
            setattr(self, name, None)
        self.is_initialized = False
        self.seen = 0
        self.in_order, self.ragged = True, False
        self._expected: tuple[Tensor, int] | None = None

    def _encode(self, keys: Tensor, values: Tensor) -> dict[str, Tensor]:
        return {"keys": keys, "values": values}

    def _decode(self) -> tuple[Tensor, Tensor]:
        return self.keys, self.values  # pyright: ignore[reportReturnType]


def right_align(kept: Tensor) -> tuple[Tensor, Tensor]:
    """How to move the kept slots of each row to its right end, in order: [B, T] bool -> two of [B, K].

    K is the most kept in any row. Returns the slot that goes to each place (int64; some dropped slot where a row has
    none left to give) and which places are really filled (bool).
    """
    most = int(kept.sum(dim=1).max())
    slots = kept.int().argsort(dim=1, stable=True)[:, kept.shape[1] - most :]
    return slots, kept.gather(1, slots)
