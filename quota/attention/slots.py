"""A cache layer whose slots know which token they hold.

Pruning makes the layers of one KV cache differ in length, and the samples of a batch too. So every slot carries the
position of its token (-1: empty), kept tokens are right-aligned, and a layer has two lengths: the tokens it has *seen*,
which positions and `generate` count by, and the slots it *holds*, which masks are sized by. Beam search, multi-turn and
assisted decoding then need nothing special: they reorder, append and crop slots.

A layer with a sliding window forgets, between passes, the slots behind the window of the next token.

Slots are appended in memory that doubles when it is full, so a decoding step copies one token and not the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from quota.errors import QuotaError
from quota.ops.choice import right_align


class SlotLayer(CacheLayerMixin):
    """One decoder layer's cache, in the type that the model computes in.

    `keys` and `values` are [B, H, T, ...], views of the first T slots of the memory behind them. Subclasses may have
    memory for more; each tensor named in `tensors` has samples first and slots third.
    """

    is_croppable = True
    tensors: tuple[str, ...] = ("keys", "values")
    """In memory, beside positions."""

    seen: int
    """Tokens seen, those without a slot included."""
    positions: Tensor
    """[B, T] int32: the token in each slot, counted from the start of the sequence; -1 if empty."""
    in_order: bool
    """The slots hold the newest tokens in every sample, as in any other cache."""
    ragged: bool
    """Some sample has empty slots."""

    def __init__(self, window: int | None = None) -> None:
        """`window`: how many tokens back, itself included, a token of this layer sees; None is all."""
        super().__init__()
        self.window = window
        self.is_sliding = window is not None
        self.record_past = False
        self.reset()

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take batch size, type and device from the first keys; hold nothing yet."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.positions = torch.empty(key_states.shape[0], 0, dtype=torch.int32, device=self.device)
        self.is_initialized = True

    def expect(self, positions: Tensor, advance: int, ragged: bool) -> None:
        """Say what the next `update` brings, if not simply the next tokens.

        `positions` [B, T] is the position of each new slot, -1 if empty, as some are if `ragged`; `advance` is how far
        the sequence moves on, counting tokens that get no slot.
        """
        self._expected = positions, advance, ragged

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values, [B, H, T, D] each, and return all that are stored, in the same type."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        batch, new = key_states.shape[0], key_states.shape[2]
        if self._expected is None:
            positions = torch.arange(self.seen, self.seen + new, dtype=torch.int32, device=self.device)
            advance = new
        else:
            given, advance, ragged = self._expected
            positions = given.to(torch.int32)
            self._expected = None
            self.in_order = False
            self.ragged |= ragged
        self.seen += advance
        held = self.held
        self._memory["positions"] = append(self._memory.get("positions"), held, positions.expand(batch, -1), 1)
        fresh = self._store(key_states, value_states, held)
        self._show(held + new)
        return self._read(new) if fresh is None else fresh

    def skip(self, tokens: int) -> None:
        """The next `tokens` are seen and get no slot, as this layer does not run; other layers' masks are as ever."""
        self.seen += tokens
        self._skipped = self.seen if self.window is None else min(self.seen, self.window - 1)

    def keep(self, kept: Tensor) -> None:
        """Drop the slots not in `kept` [B, T] bool and right-align the others."""
        slots, filled = right_align(kept)
        self.take(slots, None if bool(filled.all()) else filled)

    def take(self, slots: Tensor, filled: Tensor | None) -> None:
        """Go on with `slots` [B, K], in this order; those not `filled` [B, K], None if all are, become empty."""
        self.in_order = False
        self.ragged = filled is not None
        # Sample by sample: whole slots are copied, where `gather` would look every number up.
        samples = slots.unbind()
        for name in self.tensors:
            stored = self._view(name, self.held)
            if len(samples) == 1:
                self._memory[name] = stored.index_select(2, samples[0])
            else:
                rows = zip(stored.split(1), samples, strict=True)
                # Autocast would refuse halves.
                with torch.autocast(stored.device.type, enabled=False):
                    self._memory[name] = torch.cat([own.index_select(2, row) for own, row in rows])
        positions = self.positions.gather(1, slots)
        self._memory["positions"] = positions if filled is None else positions.masked_fill(~filled, -1)
        self._show(slots.shape[1])

    def forget(self) -> None:
        """Drop the slots that are behind the window of the next token in every sample."""
        if self.window is None or self.record_past or not self.is_initialized:
            return
        if self.in_order:
            behind = self.held - self.window + 1
        else:
            behind = int((self.positions <= self.seen - self.window).sum(dim=1).min())
        if behind > 0:
            held = self.held - behind
            for name, memory in self._memory.items():
                dim = _slot_dim(name)
                # Only the view moves on; what is behind it goes when the memory next grows.
                self._memory[name] = memory.narrow(dim, behind, memory.shape[dim] - behind)
            self._show(held)

    def activate_past_recording(self) -> None:
        """Forget nothing from now on: drafted tokens may be taken back."""
        self.record_past = True

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
        """Bytes of the slots held: keys and values, with scales and zeros if any, and positions.

        Memory set aside for later tokens, at most as much again, does not count.
        """
        if not self.is_initialized:
            return 0
        return sum(self._view(name, self.held).nbytes for name in self._memory)

    def get_seq_length(self) -> int:
        """Tokens seen."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(slots after the next update, position of the first of them in the mask).

        The offset lines up the newest slot with the newest token, so that a causal mask comes out right.
        """
        held = self.held + self._skipped
        return held + query_length, self.seen - held

    def get_max_length(self) -> int:
        """-1: no maximum."""
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the newest `-tokens_to_remove` tokens; transformers counts them with a minus sign."""
        if tokens_to_remove > 0:
            raise QuotaError("crop takes a negative number: how many of the newest tokens to remove")
        if not tokens_to_remove or not self.is_initialized:
            return
        if self.window is not None and not self.record_past and self.seen >= self.window:
            raise QuotaError("what was behind a sliding window is forgotten, so nothing can be cropped; start anew")
        self.seen = max(0, self.seen + tokens_to_remove)
        forgotten = self.positions >= self.seen
        newest = int(forgotten.sum(dim=1).max())
        if bool(forgotten[:, self.held - newest :].all()):
            # The same slots in all samples: nothing need be moved.
            self._show(self.held - newest)
        else:
            in_order = self.in_order
            self.keep((self.positions >= 0) & ~forgotten)
            self.in_order = in_order

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Make sample i what sample `beam_idx[i]` was."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these samples, in this order."""
        self._each_sample(lambda memory: memory[indices.to(memory.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sample."""
        self._each_sample(lambda memory: memory.repeat_interleave(repeats, dim=0))

    def reset(self) -> None:
        """Forget everything."""
        self.keys = self.values = None
        self._memory: dict[str, Tensor] = {}
        self.is_initialized = False
        self.seen = self._skipped = 0
        self.in_order, self.ragged = True, False
        self._expected: tuple[Tensor, int, bool] | None = None

    def _show(self, held: int) -> None:
        self.positions = self._view("positions", held)
        self.keys, self.values = self._view("keys", held), self._view("values", held)

    def _view(self, name: str, held: int) -> Tensor:
        """The first so many slots of what memory has by this name."""
        return self._memory[name].narrow(_slot_dim(name), 0, held)

    def _each_sample(self, change: Callable[[Tensor], Tensor]) -> None:
        """Change the samples of all that is stored."""
        if self.is_initialized:
            held = self.held
            self._memory = {name: change(memory) for name, memory in self._memory.items()}
            self._show(held)

    def _store(self, keys: Tensor, values: Tensor, held: int) -> tuple[Tensor, Tensor] | None:
        """Put new slots into memory, behind those held; what attention reads of all slots, if that is known already."""
        for name, new in (("keys", keys), ("values", values)):
            self._memory[name] = append(self._memory.get(name), held, new, _slot_dim(name))

    def _read(self, new: int) -> tuple[Tensor, Tensor]:
        """All that is stored, as the model's attention reads it; `new` slots have just been stored."""
        return self.keys, self.values  # pyright: ignore[reportReturnType]


def append(memory: Tensor | None, used: int, new: Tensor, dim: int) -> Tensor:
    """`memory` with `new` behind its first `used` entries along `dim`, in a copy of twice the size if it was full."""
    memory = with_room(memory, used, new.shape, dim, new.dtype, new.device)
    memory.narrow(dim, used, new.shape[dim]).copy_(new)
    return memory


def has_room(memory: Tensor | None, needed: int, dim: int) -> bool:
    """Whether so many entries along `dim` can be written to `memory` as it is."""
    if memory is None or needed > memory.shape[dim]:
        return False
    # A tensor made in inference mode cannot be written to outside of it.
    return not memory.is_inference() or torch.is_inference_mode_enabled()


def with_room(
    memory: Tensor | None, used: int, new: Sequence[int], dim: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """`memory`, or a copy of twice the size if it has no room for entries of shape `new` behind the first `used`.

    The first memory is exactly as large as what comes first: after a prefill nothing is set aside.
    """
    needed = used + new[dim]
    if memory is not None and has_room(memory, needed, dim):
        return memory
    shape = list(new)
    shape[dim] = needed if memory is None else max(needed, 2 * memory.shape[dim])
    grown = torch.empty(shape, dtype=dtype, device=device)
    if memory is not None:
        grown.narrow(dim, 0, used).copy_(memory.narrow(dim, 0, used))
    return grown


def _slot_dim(name: str) -> int:
    return 1 if name == "positions" else 2
