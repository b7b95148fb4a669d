"""Boxes of visual tokens, against the model itself: what changes when a region of a picture is painted over."""

from __future__ import annotations

import copy
import dataclasses
from collections import defaultdict
from typing import Any

import pytest
import torch
from PIL import Image
from support.families.family import flat
from torch import Tensor

from quota.errors import QuotaError
from quota.models import Box, Boxes, family
from quota.models.images import encode
from quota.models.support import VIDEO
from quota.prompts import build_inputs, taken
from quota.samples import Sample

from .conftest import SAMPLES, noise

# Right of the middle and above it: a picture that is flipped or turned over its diagonal is found out.
REGION = Box(0, 0.5, 0.0, 1.0, 0.5)


def placed(model: Any, processor: Any, sample: Sample) -> Boxes:
    return family(model).boxes(processor, build_inputs(processor, [sample]), sample.pictures())


def area(box: Box) -> float:
    return (box.right - box.left) * (box.bottom - box.top)


def overlap(box: Box, other: Box) -> float:
    """The share of `box` that lies in `other`, whatever their pictures."""
    width = min(box.right, other.right) - max(box.left, other.left)
    height = min(box.bottom, other.bottom) - max(box.top, other.top)
    return max(0.0, width) * max(0.0, height) / area(box)


def test_boxes_tile_each_picture(name: str, case: str, own: Any, model: Any) -> None:
    sample = SAMPLES[case]
    pictures = sample.pictures()
    boxes = placed(model, own, sample)
    levels: dict[tuple[int, int], list[Box]] = defaultdict(list)
    for box in boxes:
        if box is not None:
            assert 0 <= box.left < box.right <= 1 and 0 <= box.top < box.bottom <= 1
            levels[box.picture, box.level].append(box)
    seen = {picture + step for picture, level in levels for step in range(levels[picture, level][0].span)}
    assert seen == set(range(len(pictures)))
    for (picture, level), own_boxes in levels.items():
        assert sum(overlap(a, b) > 1e-6 for a in own_boxes for b in own_boxes) == len(own_boxes)
        covered = sum(area(box) for box in own_boxes)
        if name == "LlavaForConditionalGeneration":
            # Of a picture that is no square, the middle.
            width, height = pictures[picture].size
            assert covered == pytest.approx(min(width, height) / max(width, height))
        elif level == 1 and "Llava" in name:
            # Rows and columns of tokens that are part padding may be left out: up to two of the eight or fewer here.
            assert 0.75 < covered <= 1 + 1e-6
        else:
            assert covered == pytest.approx(1)


def test_what_is_painted_changes_the_tokens_that_stand_there(name: str, case: str, own: Any, model: Any) -> None:
    # The last of several; of a video the first frame of the last pair.
    pictures = tuple(noise(480, 320, seed) for seed in range(len(SAMPLES[case].pictures())))
    changed = len(pictures) - 1
    before = Sample(pictures, "w20", video=case == VIDEO)
    after = dataclasses.replace(before, image=(*pictures[:changed], painted(pictures[changed])))
    calm = near_sighted(model)
    change = (features(calm, own, after) - features(calm, own, before)).norm(dim=-1)
    boxes = placed(calm, own, before)
    assert len(boxes) == len(change)
    for level in (0, 1):
        standing = [(index, box) for index, box in enumerate(boxes) if box is not None and box.level == level]
        share = {
            index: overlap(box, REGION) if box.picture <= changed < box.picture + box.span else 0.0
            for index, box in standing
        }
        inside = [change[index].item() for index in share if share[index] > 0.9]
        outside = [change[index].item() for index in share if share[index] == 0]
        if standing:
            assert inside and min(inside) > max(outside)


def painted(picture: Image.Image) -> Image.Image:
    width, height = picture.size
    edges = (REGION.left * width, REGION.top * height, REGION.right * width, REGION.bottom * height)
    result = picture.copy()
    result.paste((250, 10, 30), tuple(round(edge) for edge in edges))
    return result


def near_sighted(model: Any) -> Any:
    """The same model with a tower in which a patch sees little of the others."""
    calm = copy.deepcopy(model)
    outputs = [
        linear
        for name, linear in family(calm).linears(["tower"])
        if name.endswith(("out_proj", "attn.proj", "projection_layer"))
    ]
    assert len(outputs) == len(family(calm).tower_blocks)
    with torch.no_grad():
        for linear in outputs:
            linear.weight *= 0.05
    return calm


@torch.no_grad()
def features(model: Any, processor: Any, sample: Sample) -> Tensor:
    """What the projector makes of the pictures, in the order of the prompt: [visual tokens, D]."""
    outputs = encode(model.model, taken(model, build_inputs(processor, [sample])))["mm_encoder_outputs"]
    return torch.cat([flat(output.pooler_output) for output in outputs.values()])


def test_a_processor_of_another_model_is_refused(name: str, own: Any, model: Any) -> None:
    sample = SAMPLES["one picture"]
    inputs = build_inputs(own, [sample])
    token = family(model).visual_tokens[0]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[token, token]])], dim=1)
    with pytest.raises(QuotaError, match=r"places for|crops"):
        family(model).boxes(own, inputs, sample.pictures())
