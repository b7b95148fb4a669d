"""What the rest of the package must know of a vision-language architecture, and nothing more.

Pruning, calibration and quantisation work on any model in which one can point at the vision tower, the projector and
the decoder layers, and tell which positions of a prompt hold which image. A family is one function from a model to
this record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from quota.errors import QuotaError

PARTS = ("tower", "projector", "decoder")


@dataclass(frozen=True)
class Family:
    """The rooms of one model, in the order in which data passes through them."""

    model: Any
    """The model as the user holds it, with its head."""
    base: nn.Module
    """Takes `input_ids`, merges image features into the embeddings, calls `text_model`."""
    tower: nn.Module
    tower_blocks: nn.ModuleList
    """The tower's transformer blocks, first to last."""
    projector: nn.Module
    text_model: Any
    """Takes `inputs_embeds` and the KV cache; its `layers` are the decoder layers, its `config` theirs."""
    lm_head: nn.Module
    image_index: Callable[[Tensor], Tensor]
    """input_ids [B, L] -> [B, L] int64: which image of its sample a position belongs to, counted from 0; text -1."""
    image_arguments: tuple[str, ...] = ("pixel_values", "mm_encoder_outputs")
    """Arguments of `base` that bring images. Without any of them an image token is a word like others."""

    @property
    def sees(self) -> bool:
        """Whether there is a vision tower; without one a prompt is text alone."""
        return len(self.tower_blocks) > 0

    @property
    def decoder_layers(self) -> nn.ModuleList:
        """The decoder layers, first to last."""
        return self.text_model.layers

    def visual_mask(self, input_ids: Tensor) -> Tensor:
        """Which positions hold a visual token: [B, L] int64 -> [B, L] bool."""
        return self.image_index(input_ids) >= 0

    def linears(self, parts: Iterable[str] = PARTS) -> list[tuple[str, nn.Linear]]:
        """(name in the model, module) of every linear in these parts, in the order of `PARTS`.

        Embeddings, the patch convolution and lm_head are in no part: they stay in 16 bits. Raises QuotaError for a
        part that does not exist.
        """
        chosen = set(parts)
        if unknown := chosen - set(PARTS):
            raise QuotaError(f"unknown part {min(unknown)!r}; a model has the parts {', '.join(PARTS)}")
        roots = {"tower": self.tower_blocks, "projector": self.projector, "decoder": self.decoder_layers}
        names = {module: name for name, module in self.model.named_modules()}
        return [
            (names[module], module)
            for part in PARTS
            if part in chosen
            for module in roots[part].modules()
            if isinstance(module, nn.Linear)
        ]
