"""What the rest of the package must know of a vision-language architecture, and nothing more.

Pruning, calibration and quantisation work on any model in which one can point at the vision tower, the projector and
the decoder layers, tell which positions of a prompt hold which image, and say which tokens a layer's attention may
look at. To draw what happened one also needs the place of a token in its picture. A family is one function from a
model to this record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedConfig

from quota.errors import QuotaError
from quota.models.boxes import Boxes, Layout
from quota.models.images import visual_mask

PARTS = ("tower", "projector", "decoder")

ImageIndex = Callable[[Tensor, Mapping[str, Any]], Tensor]
"""(input_ids [B, L], arguments of `base`) -> image of each position, [B, L] int64."""


@dataclass(frozen=True)
class Family:
    """The rooms of one model, in the order in which data passes through them."""

    model: Any
    """The model as the user holds it, with its head."""
    tower_blocks: nn.ModuleList
    """The tower's transformer blocks, first to last."""
    projectors: tuple[nn.Module, ...]
    """What turns features of the tower into visual tokens: one module, with DeepStack several."""
    text_model: Any
    """Takes `inputs_embeds` and the KV cache; its `layers` are the decoder layers, its `config` theirs."""
    visual_tokens: tuple[int, ...]
    """The ids that hold a place for a visual token in `input_ids`."""
    index_images: ImageIndex
    """Which image of its sample a position belongs to, counted from 0; text -1 (quota/models/images.py)."""
    layout: Layout
    """Where the visual tokens of a prompt stand in its pictures (quota/models/boxes.py)."""
    image_arguments: tuple[str, ...] = ("pixel_values", "mm_encoder_outputs")
    """Arguments of `base` that bring images. Without any of them an image token is a word like others."""
    encodes_first: bool = False
    """Whether `index_images` needs the images encoded, as the lengths of images are not to be seen in the prompt."""
    frames_in_positions: bool = False
    """Whether the frames of a video touch, and only the positions of its tokens tell them apart."""
    blocks: Callable[[Mapping[str, Any], int], Tensor | None] | None = None
    """For masks that are not causal. (arguments of `base`, tokens cached P) -> block of each token [B, P + L] int64:

    tokens of one block see one another, -1 is in none. None: this pass is causal.
    """
    deepstack: int = 0
    """Behind so many of the first decoder layers features of tower blocks are added (quota/pruning/deepstack.py)."""

    @property
    def base(self) -> Any:
        """Takes `input_ids`, merges image features into the embeddings, calls `text_model`."""
        return self.model.model

    @property
    def sees(self) -> bool:
        """Whether there is a vision tower; without one a prompt is text alone."""
        return len(self.tower_blocks) > 0

    @property
    def decoder_layers(self) -> nn.ModuleList:
        """The decoder layers, first to last."""
        return self.text_model.layers

    @property
    def causal(self) -> bool:
        """Whether in every layer a token sees all tokens before it and none behind."""
        windows = (self.window(layer) for layer in range(len(self.decoder_layers)))
        return self.blocks is None and not any(windows)

    def window(self, layer: int) -> int | None:
        """How far back decoder layer `layer` looks, in tokens; None if without end."""
        return sliding_window(self.text_model.config, layer)

    def visual_mask(self, input_ids: Tensor) -> Tensor:
        """Which positions hold a visual token: [B, L] int64 -> [B, L] bool."""
        return visual_mask(input_ids, self.visual_tokens)

    def boxes(self, processor: Any, inputs: Mapping[str, Any], pictures: Sequence[Image.Image]) -> Boxes:
        """The place of every visual token of one prompt, in order; None for a token without one, as a newline.

        `inputs` is what `processor` made of the prompt ([1, L]) with its `pictures`, or frames of its video. Raises
        QuotaError for a processor that cuts pictures in a way that this family does not know.
        """
        boxes = self.layout(processor, inputs, pictures)
        count = int(self.visual_mask(inputs["input_ids"]).sum())
        if len(boxes) != count:
            raise QuotaError(
                f"the prompt has {count} visual tokens but its pictures have places for {len(boxes)}: the processor "
                "does not fit the model, so none can be drawn; take the processor files of the model's own checkpoint"
            )
        return boxes

    def linears(self, parts: Iterable[str] = PARTS) -> list[tuple[str, nn.Linear]]:
        """(name in the model, module) of every linear in these parts, in the order of `PARTS`.

        Embeddings, the patch convolution and lm_head are in no part. Raises QuotaError for a part that does not exist.
        """
        chosen = set(parts)
        if unknown := chosen - set(PARTS):
            raise QuotaError(f"unknown part {min(unknown)!r}; a model has the parts {', '.join(PARTS)}")
        roots = {"tower": [self.tower_blocks], "projector": self.projectors, "decoder": [self.decoder_layers]}
        names = {module: name for name, module in self.model.named_modules()}
        return [
            (names[module], module)
            for part in PARTS
            if part in chosen
            for root in roots[part]
            for module in root.modules()
            if isinstance(module, nn.Linear)
        ]


def sliding_window(config: PreTrainedConfig, layer: int) -> int | None:
    """Tokens that a layer of this text configuration looks back, itself included; None if without end."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    return window if window and (kinds is None or kinds[layer] == "sliding_attention") else None


def refuse_softcap(config: PreTrainedConfig, name: str) -> None:
    """QuotaError for decoders that cap their attention logits, which no operator here does."""
    if getattr(config, "attn_logit_softcapping", None) is not None:
        raise QuotaError(f"{name} with a {config.model_type} decoder caps its attention logits; this is not supported")
