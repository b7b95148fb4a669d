"""Which image every position of a prompt belongs to: three ways to tell, and families choose one.

    by_count     every image is the same number of tokens                       LLaVA 1.5, PaliGemma
    by_runs      images are kept apart by words between them                    Qwen-VL, InternVL, Idefics 3, Gemma 3
    by_lengths   images differ in length and may touch: ask the encoded images  LLaVA-NeXT, LLaVA-OneVision

All return [B, L] int64: the image of a token, counted from 0 in its sample, and -1 for text. A frame of a video, and a
tile that the prompt sets apart, is an image of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from quota.errors import QuotaError

MODALITIES = ("image", "video")


def visual_mask(input_ids: Tensor, tokens: Sequence[int]) -> Tensor:
    """Which positions hold a visual token, one of the ids `tokens`: [B, L] int64 -> [B, L] bool."""
    visual = torch.zeros_like(input_ids, dtype=torch.bool)
    for token in tokens:
        visual |= input_ids == token
    return visual


def by_count(visual: Tensor, per_image: int) -> Tensor:
    """Images of `per_image` tokens each, in order. QuotaError for a sample with a part of one."""
    if any(count % per_image for count in visual.sum(dim=-1).tolist()):
        raise QuotaError(
            f"the input holds a part of an image ({per_image} visual tokens each); pass whole prompts, "
            "without prefill_chunk_size"
        )
    return torch.where(visual, (visual.cumsum(dim=-1) - 1) // per_image, -1)


def by_runs(input_ids: Tensor, tokens: Sequence[int]) -> Tensor:
    """Every run of one visual token is an image."""
    return _number(visual_mask(input_ids, tokens), _changes(input_ids))


def by_lengths(input_ids: Tensor, lengths: Mapping[int, Sequence[int]]) -> Tensor:
    """Visual token -> the lengths of its images, over the whole batch in order.

    QuotaError if they do not add up to the tokens there are.
    """
    visual, begins = torch.zeros_like(input_ids, dtype=torch.bool), torch.zeros_like(input_ids, dtype=torch.bool)
    for token, counts in lengths.items():
        there = input_ids == token
        if int(there.sum()) != sum(counts):
            raise QuotaError(
                f"the input holds {int(there.sum())} visual tokens but its images have {sum(counts)}; pass whole "
                "prompts with their images, without prefill_chunk_size"
            )
        visual |= there
        if counts:
            image = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(input_ids.device)
            # Positions of a batch are counted row by row, as images are.
            begins[there] = _changes(image[None])[0]
    return _number(visual, begins)


def split_frames(images: Tensor, position_ids: Tensor | None) -> Tensor:
    """Images [B, L] with every frame of a video as one of its own, by M-RoPE positions.

    `position_ids` is [3 or 4, B, L], the last three being time, row and column; or of text alone, where a cache goes on
    without pictures. Inside a frame, read row by row, either the row or the column grows from one token to the next.
    """
    if position_ids is None or position_ids.ndim != 3 or len(position_ids) < 3:
        return images
    row, column = position_ids[-2], position_ids[-1]
    grows = (row.diff(dim=-1) > 0) | (column.diff(dim=-1) > 0)
    return _number(images >= 0, _changes(images) | ~pad(grows, (1, 0), value=True))


def encode(base: nn.Module, given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `base` with its images encoded, as `generate` hands them over.

    Pixels are replaced by `mm_encoder_outputs`, whose `pooler_output` holds the visual tokens of each image.
    """
    outputs, used = dict(given.get("mm_encoder_outputs") or {}), set()
    for modality, pixels in zip(MODALITIES, ("pixel_values", "pixel_values_videos"), strict=True):
        if given.get(pixels) is None:
            continue
        function = getattr(base, f"get_{modality}_features")
        names = [name for name in inspect.signature(function).parameters if given.get(name) is not None]
        outputs[modality] = function(**{name: given[name] for name in names}, return_dict=True)
        used.add(pixels)
    return {**given, **dict.fromkeys(used), "mm_encoder_outputs": outputs}


def lengths(given: Mapping[str, Any], modality: str) -> list[int]:
    """Visual tokens of each encoded image or video of a batch."""
    output = (given.get("mm_encoder_outputs") or {}).get(modality)
    return [] if output is None else [len(item) for item in output.pooler_output]


def _changes(x: Tensor) -> Tensor:
    """Where x [B, L] differs from the place before it, the first place included: bool."""
    return pad(x.diff(dim=-1) != 0, (1, 0), value=True)


def _number(visual: Tensor, begins: Tensor) -> Tensor:
    return torch.where(visual, (visual & begins).cumsum(dim=-1) - 1, -1)
