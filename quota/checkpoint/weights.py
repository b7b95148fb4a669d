"""Single tensors of a checkpoint folder, read by the names that the model has for them.

A checkpoint's keys are not always the names of the model's parameters: transformers renames on loading, and back on
saving. Here its own rules are asked for every key of the files' headers, so that any tensor can be read alone, and
whatever takes a tensor's place can be written under the checkpoint's name for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
from quota.files import check_file, read_json

# As safetensors names them.
FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Place:
    """Where a tensor lies, and what the file's header says of it."""

    file: Path
    key: str
    dtype: str
    """By the name of safetensors: "BF16"."""
    shape: tuple[int, ...]


class Weights:
    """The tensors of the checkpoint in `folder`, by their names in `model` (whose own tensors may be on "meta")."""

    def __init__(self, folder: Path, model: PreTrainedModel) -> None:
        """Reads the headers only. QuotaError for files that are missing or not whole, for tensors that are missing or
        of another shape or kind than the model's, and for a layout that transformers would have to compute (fused or
        split tensors), not just rename."""
        self.files = weight_files(folder)
        self.places, _ = locate(self.files, model)
        if missing := missing_tensors(model, self.places):
            raise QuotaError(f"{folder} lacks the weight {missing[0]}; copy the checkpoint again")
        for name, tensor in model.state_dict().items():
            if name in self.places:
                check_header(self.places[name], tensor.shape, FLOATS if tensor.is_floating_point() else ())

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
                    tensor = opened.get_tensor(self.places[name].key).clone()
                    check_finite(tensor, f"{file}: {self.places[name].key}")
                    found[name] = tensor
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


def locate(files: Iterable[Path], model: PreTrainedModel) -> tuple[dict[str, Place], list[str]]:
    """Name in `model` -> its place in `files`, and the keys that mean nothing to it. Errors as `Weights`."""
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    wanted = model.state_dict()
    places: dict[str, Place] = {}
    unexpected = []
    for file in files:
        for place in _headers(file):
            name, converted = rename_source_key(place.key, renamings, converters, model.base_model_prefix, wanted)
            if converted is not None:
                raise QuotaError(
                    f"{file} stores {place.key} in another layout than the model's; load it and save it anew"
                )
            if name not in wanted:
                unexpected.append(place.key)
            elif name in places:
                raise QuotaError(f"{file} stores {place.key} a second time; copy the checkpoint again")
            else:
                places[name] = place
    return places, sorted(unexpected)


def missing_tensors(model: PreTrainedModel, places: Mapping[str, Place]) -> list[str]:
    """Tensors of `model` that are in no file, though no other one is tied to them."""
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    return sorted(model.state_dict().keys() - places.keys() - tied)


def check_header(place: Place, shape: Sequence[int], dtypes: Sequence[str]) -> None:
    """QuotaError unless the tensor at `place` has this shape and one of these types (none given: any)."""
    if place.shape != tuple(shape):
        raise QuotaError(
            f"{place.file}: {place.key} has the shape {list(place.shape)} where the model has {list(shape)}; "
            "the file belongs to another model"
        )
    if dtypes and place.dtype not in dtypes:
        raise QuotaError(
            f"{place.file}: {place.key} holds {place.dtype} where {' or '.join(dtypes)} belongs; copy it again"
        )


def check_finite(tensor: Tensor, name: str) -> None:
    """QuotaError if a tensor of floating-point numbers holds NaN or infinity."""
    if tensor.is_floating_point() and tensor.numel():
        # One pass, and no tensor of booleans: NaN and infinity both come out at an end.
        low, high = torch.aminmax(tensor)
        if not bool(torch.isfinite(low) & torch.isfinite(high)):
            raise QuotaError(f"{name} holds NaN or infinity; copy it again")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint. QuotaError if it has none."""
    # As transformers does: an index beside a whole file is left from an earlier save.
    if (folder / SAFE_WEIGHTS_NAME).exists():
        return [folder / SAFE_WEIGHTS_NAME]
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if index.exists():
        places = read_json(index, "list of files").get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()) or not places:
            raise QuotaError(f"{index} has no weight_map of names; copy it again")
        return [folder / Path(name).name for name in sorted(set(places.values()))]
    raise QuotaError(f"{folder} holds no safetensors files; load the model and save it with save_pretrained first")


def count_tensors(folder: Path) -> int:
    """How many tensors the files of a checkpoint hold. QuotaError if it has no files."""
    return sum(len(_headers(file)) for file in weight_files(folder))


def _headers(file: Path) -> list[Place]:
    check_file(file)
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118 (it is no dictionary)
            return [Place(file, key, found.get_dtype(), tuple(found.get_shape())) for key, found in slices.items()]
    except (OSError, ValueError, SafetensorError) as error:
        raise QuotaError(f"{file} is not whole ({error}); copy it again or compress again") from None
