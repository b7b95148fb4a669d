"""Bytes of a checkpoint's tensors by part of the model, from the headers of its files: no weight is read.

What is in the tower's blocks, the projector and the decoder layers counts there, with norms, scales and transforms;
`other` is what stands between them, as the patch embedding. In 16 bits the same parameters take two bytes each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoModelForImageTextToText

from quota.checkpoint.described import Described
from quota.checkpoint.load import put_empty_layers
from quota.checkpoint.named import in_one_line
from quota.checkpoint.on_disk import empty_model
from quota.checkpoint.weights import locate, weight_files
from quota.models import family

_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2}
_OTHER = "other"


@dataclass(frozen=True)
class PartBytes:
    """One part of a model."""

    stored: int
    """What its tensors take in the files."""
    in_16_bits: int
    """What its parameters would take."""


def part_bytes(folder: Path, found: Described) -> dict[str, PartBytes]:
    """Name of each part, in the order of data through the model -> its bytes. QuotaError for files that are not whole.

    A head that shares the integers of the embedding has none of its own.
    """
    with in_one_line(str(folder)):
        model = empty_model(lambda: AutoModelForImageTextToText.from_config(found.config))
    roots = _roots(model)
    plain: dict[str, int] = dict.fromkeys([*dict.fromkeys(roots.values()), _OTHER], 0)
    for name, parameter in model.named_parameters():
        # The configuration of a checkpoint of ours no longer says that they are one.
        if not (found.settings.tied and _part(name, roots) == "lm_head"):
            plain[_part(name, roots)] += 2 * parameter.numel()
    put_empty_layers(model, found.settings)
    stored = dict.fromkeys(plain, 0)
    places, _ = locate(weight_files(folder), model)
    for name, place in places.items():
        stored[_part(name, roots)] += math.prod(place.shape) * _BYTES[place.dtype]
    return {part: PartBytes(stored[part], plain[part]) for part in plain if stored[part] or plain[part]}


def _roots(model: Any) -> dict[str, str]:
    """Beginning of a tensor's name -> the part it belongs to."""
    parts = family(model)
    modules = {
        parts.tower_blocks: "tower",
        **dict.fromkeys(parts.projectors, "projector"),
        model.get_input_embeddings(): "embedding",
        parts.decoder_layers: "decoder",
        model.get_output_embeddings(): "lm_head",
    }
    names = {module: name for name, module in model.named_modules()}
    return {f"{names[module]}.": part for module, part in modules.items()}


def _part(name: str, roots: dict[str, str]) -> str:
    # DeepStack's projectors stand inside the tower: the longest name is the nearest.
    inside = [root for root in roots if name.startswith(root)]
    return roots[max(inside, key=len)] if inside else _OTHER
