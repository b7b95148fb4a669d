"""What the vision tower itself looks at: attention from its [CLS] token to every patch.

    tower_i = 1/H sum_h A_h[CLS, i]                 with a [CLS] token (CLIP)
    tower_i = 1/H sum_h 1/P sum_p A_h[p, i]         without (SigLIP): what all P patches look at

A is the softmax of the tower block whose output the projector takes (VisionZip, arXiv 2412.04467). Its queries and
keys are read while it runs, so neither eager attention nor a second pass is needed.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from quota.attention.per_thread import PerThread
from quota.errors import QuotaError
from quota.models import Family


class TowerAttention:
    """Watches one tower from construction on, until its `handles` are removed."""

    _seen = PerThread[dict[str, Tensor]]()
    """What `generate` has encoded before its prefill, which then has no pixels."""

    def __init__(self, family: Family) -> None:
        """QuotaError for a tower without separate projections of queries and keys."""
        # The feature layer counts outputs: 1 is that of the first block, -1 of the last.
        chosen = getattr(family.model.config, "vision_feature_layer", None)
        if not isinstance(chosen, int) or chosen == 0:
            raise QuotaError(
                f"vision_feature_layer {chosen} does not say which tower block to watch; use another scorer"
            )
        block = family.tower_blocks[chosen - 1 if chosen > 0 else chosen]
        # CLIP and SigLIP call it self_attn, DINOv2 attention.
        attention: Any = getattr(block, "self_attn", None) or getattr(block, "attention", None)
        if not hasattr(attention, "q_proj") or not hasattr(attention, "k_proj"):
            raise QuotaError("this vision tower has no q_proj and k_proj to watch; use another scorer")
        self._heads: int = getattr(attention, "num_heads", None) or attention.num_attention_heads
        self.handles: list[RemovableHandle] = [
            getattr(attention, name).register_forward_hook(partial(self._note, name)) for name in ("q_proj", "k_proj")
        ]

    def _note(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self._seen = (self._seen or {}) | {name: output.detach()}

    def received(self, images: Tensor) -> Tensor:
        """[B, L] (image of its sample that a position belongs to, -1 text) -> what it receives, [B, L], 0 for text.

        Raises QuotaError if the tower has not seen these images.
        """
        visual = images >= 0
        count = int(visual.sum())
        seen = self._seen
        if seen is None:
            raise QuotaError("the scorer needs the vision tower's attention; pass pixel_values, not encoded images")
        query, key = (seen[name] for name in ("q_proj", "k_proj"))
        pictures = [row[row >= 0].unique().numel() for row in images]
        beams, rest = divmod(sum(pictures), len(key))
        if rest or not beams:
            raise QuotaError("the prompt's images are not those that the vision tower has seen last; pass both at once")
        if key.shape[1] - count // sum(pictures) not in (0, 1):
            raise QuotaError("this tower's patches are not the visual tokens one by one; use another scorer")
        weights = class_attention(query, key, self._heads, count // sum(pictures))
        # Beams stand for one sample, whose images the tower has seen once.
        samples = weights.split(pictures[::beams])
        received = torch.zeros(images.shape, dtype=torch.float32, device=images.device)
        received[visual] = torch.cat([sample for sample in samples for _ in range(beams)]).flatten()
        return received


def class_attention(query: Tensor, key: Tensor, heads: int, patches: int) -> Tensor:
    """Queries and keys [I, P, W] of one tower block -> attention to the last `patches` tokens, [I, patches] float32.

    From the token before them, if there is one, else the mean over all.
    """
    images, tokens, width = key.shape
    query, key = (x.float().view(images, tokens, heads, width // heads).transpose(1, 2) for x in (query, key))
    if tokens > patches:
        query = query[:, :, :1]
    weights = (query @ key.transpose(-1, -2) * (width // heads) ** -0.5).softmax(dim=-1)
    return weights.mean(dim=(1, 2))[:, tokens - patches :]
