"""Single tensors of a checkpoint folder, read by the names that the model has for them.

A checkpoint's keys are not always the names of the model's parameters: transformers renames on loading, and back on
saving. Here its own rules are asked for every key of the files' headers, so that any tensor can be read alone, and
whatever takes a tensor's place can be written under the checkpoint's name for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from quota.errors import QuotaError


@dataclass(frozen=True)
class Place:
    """Where a tensor lies."""

    file: Path
    key: str


class Weights:
    """The tensors of the checkpoint in `folder`, by their names in `model` (whose own tensors may be on "meta")."""

    def __init__(self, folder: Path, model: PreTrainedModel) -> None:
        """Reads the headers only. QuotaError for files that are missing or not whole, and for a layout that
        transformers would have to compute (fused or split tensors), not just rename."""
        self.places: dict[str, Place] = {}
        self.files = weight_files(folder)
        rules = get_model_conversion_mapping(model)
        renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        wanted = model.state_dict()
        for file in self.files:
            for key in _keys(file):
                name, converted = rename_source_key(key, renamings, converters, model.base_model_prefix, wanted)
                if converted is not None:
                    raise QuotaError(
                        f"{file} stores {key} in another layout than the model's; load it and save it anew"
                    )
                if name in wanted:
                    self.places[name] = Place(file, key)
        tied = set(getattr(model, "all_tied_weights_keys", None) or {})
        if missing := wanted.keys() - self.places.keys() - tied:
            raise QuotaError(f"{folder} lacks the weight {min(missing)}; copy the checkpoint again")

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """These tensors, in memory of their own."""
        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self.places[name].file, []).append(name)
        found = {}
        for file, inside in by_file.items():
            with safe_open(file, framework="pt") as opened:
                for name in inside:
                    # What safetensors returns is a view of the file.
                    found[name] = opened.get_tensor(self.places[name].key).clone()
        return found

    def key(self, name: str) -> str:
        """What the checkpoint calls the tensor `name`; of one that it does not have, what it would call it."""
        if name in self.places:
            return self.places[name].key
        parent = name
        while "." in parent:
            parent = parent.rpartition(".")[0]
            for known, place in self.places.items():
                inside = known.removeprefix(parent)
                if known != inside and inside.startswith(".") and place.key.endswith(inside):
                    return place.key.removesuffix(inside) + name.removeprefix(parent)
        return name

    def dtype(self) -> torch.dtype:
        """The type of the first tensor that holds floating-point numbers."""
        for place in self.places.values():
            with safe_open(place.file, framework="pt") as opened:
                tensor = opened.get_tensor(place.key)
            if tensor.is_floating_point():
                return tensor.dtype
        raise QuotaError("the checkpoint holds no floating-point weights")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint. QuotaError if it has none."""
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if index.is_file():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return [folder / name for name in sorted(names)]
    if (folder / SAFE_WEIGHTS_NAME).is_file():
        return [folder / SAFE_WEIGHTS_NAME]
    raise QuotaError(f"{folder} holds no safetensors files; load the model and save it with save_pretrained first")


def _keys(file: Path) -> list[str]:
    try:
        with safe_open(file, framework="pt") as opened:
            return list(opened.keys())
    except (OSError, SafetensorError) as error:
        raise QuotaError(f"{file} is not whole ({error}); copy it again") from None
