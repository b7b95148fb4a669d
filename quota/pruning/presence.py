"""Which tokens of one forward pass are still there, and what a decoder layer must be told about them.

The decoder's outer loop knows nothing of pruning: it hands every layer the masks and rotary tables of all tokens. So
each layer behind a cut gets its own, made from this record: a mask sized by the layer's own cache, rotary tables
gathered at the tokens' original positions, whatever they hold (M-RoPE, other tables for sliding layers). Samples that
keep different numbers of tokens are right-aligned, and the empty places on the left are masked.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask

from quota.attention.masks import allowed_pairs, as_attention_mask
from quota.attention.slots import SlotLayer
from quota.errors import QuotaError
from quota.models import Family
from quota.models.images import split_frames
from quota.ops.choice import Cut, rows_at


def images_of(family: Family, given: Mapping[str, Any]) -> Tensor:
    """Which image each position of a prompt belongs to, [B, L], -1 for text, from the arguments of `family.base`.

    Images are encoded already where the family asks for it (quota/models/images.py).
    """
    # `generate` passes an empty dictionary when there is no image.
    if any(given.get(name) is not None and len(given[name]) for name in family.image_arguments):
        return family.index_images(given["input_ids"], given)
    return torch.full_like(given["input_ids"], -1)


class Presence:
    """B samples, L tokens in this pass after P tokens in the cache; T places are left of the L."""

    def __init__(
        self,
        images: Tensor,
        attention_mask: Tensor | None,
        past: int,
        causal: bool = True,
        blocks: Tensor | None = None,
    ) -> None:
        """`images` [B, L] is the image that each token belongs to, -1 for text; `attention_mask` [B, P + L].

        Where attention is not `causal`, `blocks` [B, P + L] may hold the block of each token
        (quota/attention/masks.py).
        """
        batch, length = images.shape
        if attention_mask is not None and getattr(attention_mask, "shape", None) != (batch, past + length):
            given = list(attention_mask.shape) if isinstance(attention_mask, Tensor) else type(attention_mask).__name__
            raise QuotaError(
                f"attention_mask is {given}, but {batch} samples with {past} cached and {length} "
                f"new tokens need a two-dimensional one of {[batch, past + length]}"
            )
        self.past = past
        self.length = length
        self.all_images = images
        self._most = int(images.max()) + 1
        """Images of the sample with most of them."""
        # A mask that masks nothing would only make every layer build one of its own.
        self.attention_mask = None if attention_mask is None or bool(attention_mask.all()) else attention_mask
        self.index = torch.arange(length, device=images.device).expand(batch, -1)
        self.filled = torch.ones_like(self.index, dtype=torch.bool)
        self.ragged = False
        self.cuts: list[tuple[int, Tensor, Tensor]] = []
        self._causal, self._blocks = causal, blocks
        self._look()

    @classmethod
    def of(
        cls, family: Family, given: Mapping[str, Any], images: Tensor, position_ids: Tensor | None, past: int = 0
    ) -> Presence:
        """Of a pass that `family.base` was `given` these arguments for, and its text model these `position_ids`.

        `images` are those of `images_of`.
        """
        if family.frames_in_positions:
            images = split_frames(images, position_ids)
        blocks = family.blocks and family.blocks(given, past)
        return cls(images, given.get("attention_mask"), past, family.causal, blocks)

    @cached_property
    def sizes(self) -> list[list[int]]:
        """Of every sample, the tokens of its images (0: it has fewer) before anything was dropped."""
        images = torch.arange(self._most, device=self.all_images.device)
        return (self.all_images[:, None] == images[:, None]).sum(dim=2).tolist()

    @property
    def has_images(self) -> bool:
        """Whether any sample has."""
        return self._most > 0

    @property
    def whole(self) -> bool:
        """Whether nothing has been dropped so far."""
        return not self.cuts

    @cached_property
    def visual(self) -> Tensor:
        """[B, T] bool: places with a visual token."""
        return self.images >= 0

    @cached_property
    def text(self) -> Tensor:
        """[B, T] bool: places with any other token."""
        return self.valid & ~self.visual

    @cached_property
    def numbers(self) -> Tensor:
        """[B, T]: of each visual token its number within its sample, over all images; anything for other tokens."""
        return ((self.all_images >= 0).cumsum(dim=1) - 1).gather(1, self.index)

    def _look(self) -> None:
        """What follows from which tokens are present, until the next cut."""
        for name in ("visual", "text", "numbers"):
            self.__dict__.pop(name, None)
        self.valid = self.filled
        """[B, T] bool: places with a token that is not padding."""
        if self.attention_mask is not None:
            self.valid = self.filled & self.attention_mask[:, self.past :].bool().gather(1, self.index)
        self.images = self.all_images if self.whole else self.all_images.gather(1, self.index)
        """[B, T]: the image that the token at each place belongs to, -1 for text and for what is not valid."""
        self._positions = self.index + self.past
        if self.ragged:
            self._positions = self._positions.masked_fill(~self.filled, -1)
        if self.ragged or self.attention_mask is not None:
            self.images = self.images.masked_fill(~self.valid, -1)
        self._rotary: list[tuple[Any, tuple[Tensor, ...]]] = []
        self._masks: dict[tuple[int, int], Tensor | None] = {}

    def keys(self, slots: SlotLayer) -> Tensor:
        """[B, S] bool: which slots may be attended to once a layer's cache has taken up the tokens present."""
        valid = self.valid
        return torch.cat([slots.valid(self.attention_mask), valid], dim=1) if slots.held else valid

    def cut(self, layer: int, cut: Cut, hidden: Tensor, slots: SlotLayer | None) -> Tensor:
        """Go on from `layer` with what is left of T places: its output [B, T, D] -> [B, K, D].

        Its cache has taken up all T and is cut down too; before the first layer there is none.
        """
        places, self.filled = cut.slots, cut.filled
        self.ragged = len(places) > 1 and not bool(self.filled.all())
        if slots is not None and slots.held > cut.kept.shape[1]:
            cached = slots.positions[:, : slots.held - cut.kept.shape[1]] >= 0
            slots.keep(torch.cat([cached, cut.kept], dim=1))
        elif slots is not None:
            slots.take(places, self.filled if self.ragged else None)
        self.index = self.index.gather(1, places)
        self.cuts.append((layer, self.index, self.filled))
        self._look()
        return rows_at(hidden, places)

    def arguments(
        self, layer: int, hidden: Tensor, kwargs: dict[str, Any], config: PreTrainedConfig, window: int | None = None
    ) -> dict[str, Any]:
        """The keyword arguments of decoder layer `layer` for its input `hidden` [B, T, D], from the outer loop's.

        `window` is how far back the layer looks.
        """
        cache: Cache = kwargs["past_key_values"]
        slots = cache.layers[layer]
        if not isinstance(slots, SlotLayer):
            raise TypeError(f"decoder layer {layer} has a {type(slots).__name__}; attach_cache comes first")
        if self.whole and slots.in_order:
            return kwargs
        positions = self._positions
        if self._causal:
            mask = self._causal_mask(layer, hidden, cache, slots, config, kwargs.get("attention_mask"))
        else:
            keys = torch.cat([slots.positions, positions], dim=1) if slots.held else positions
            mask = allowed_pairs(positions, keys, self.keys(slots), self._blocks, window)
            mask = as_attention_mask(mask, config, hidden.dtype)
        if self.whole:
            return kwargs | {"attention_mask": mask}
        slots.expect(positions, self.length, self.ragged)
        # Position ids with gaps would be taken for packed sequences; the rotary tables say it all.
        return kwargs | {
            "attention_mask": mask,
            "position_ids": None,
            "position_embeddings": self._rotary_tables(kwargs["position_embeddings"]),
        }

    def restore(self, hidden: Tensor, layer: int) -> Tensor:
        """The input of decoder layer `layer` (or the output of the last) at full length, [B, T, D] -> [B, L, D].

        Places of dropped tokens are zero: they say nothing.
        """
        layouts = [(index, filled) for cut, index, filled in self.cuts if cut < layer]
        if not layouts:
            return hidden
        index, filled = layouts[-1]
        full = hidden.new_zeros(hidden.shape[0], self.length, hidden.shape[2])
        if len(index) == 1:
            return full.index_copy_(1, index[0], hidden)
        sample, place = filled.nonzero(as_tuple=True)
        full[sample, index[sample, place]] = hidden[sample, place]
        return full

    def _causal_mask(
        self,
        layer: int,
        hidden: Tensor,
        cache: Cache,
        slots: SlotLayer,
        config: PreTrainedConfig,
        outer: Any,
    ) -> Tensor | None:
        # Of layers that have seen and hold as much, masks are alike: where nothing is padded, and without a past.
        length, padded = (slots.seen, slots.held), self.attention_mask is not None or slots.ragged or self.ragged
        if self.length == 1 and not padded and outer is None:
            # One token, and it sees everything, however much a layer holds.
            return None
        shared = not padded or not slots.seen
        if shared and length in self._masks:
            return self._masks[length]
        mask = pad(self.keys(slots), (slots.seen - slots.held, 0)) if padded else None
        mask = create_causal_mask(config, hidden, mask, cache, layer_idx=layer)
        if shared:
            self._masks[length] = mask
        return mask

    def _rotary_tables(self, tables: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # The outer loop passes one and the same object to all layers of a kind.
        for source, gathered in self._rotary:
            if source is tables:
                return gathered
        gathered = tuple(rows_at(table.expand(len(self.index), -1, -1), self.index) for table in tables)
        self._rotary.append((tables, gathered))
        return gathered
