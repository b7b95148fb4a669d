"""Write a compressed model to a folder that transformers can load.

The folder is an ordinary checkpoint: safetensors under the original key names, config.json, tokenizer and processor.
Quantised layers are stored in the "pack-quantized" format of compressed-tensors, which transformers and vLLM know, and
quota adds four things of its own:

    config.json         the key "quota": settings version, scheme, and whether a recipe belongs to the checkpoint
    recipe.json         which visual tokens are dropped where (quota/pruning/recipe.py)
    measurements.json   what the recipe was found by, for others later (quota/allocation/measurements.py)
    manifest.json       what every file holds, to find damage (quota/checkpoint/manifest.py)

With `import quota`, `from_pretrained` runs the model as it was saved (quota/checkpoint/load.py). Without it
transformers loads the same quantised layers, keeps every token, and a 16-bit KV cache. Two things it cannot do by
itself, as of version 5: rotate the layers' inputs, as it passes over the `transform_config` in which
compressed-tensors describes that, and read an embedding in 8 bits. The model would answer nonsense. A checkpoint with
either therefore carries `REFUSAL`, on which every loader but ours stops with one line, and README.md gives the lines
that take it out and do both (quota/checkpoint/card.py).
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from quota.allocation.measurements import Measurements
from quota.checkpoint.card import CARD_FILE, model_card
from quota.checkpoint.guard import guard
from quota.checkpoint.manifest import seal
from quota.errors import QuotaError, first_problem
from quota.files import staged_folder, write_atomically
from quota.ops.interface import InputSpec, LinearSpec
from quota.pruning.pruner import Pruner
from quota.pruning.recipe import PruningRecipe
from quota.quantization.embedding import QuantizedEmbedding, TiedHead
from quota.quantization.ends import has_tied_head
from quota.quantization.linear import W4A4Linear
from quota.scheme import FromFile, QuantizationScheme

CONFIG_FILE = "config.json"
RECIPE_FILE = "recipe.json"
MEASUREMENTS_FILE = "measurements.json"

FORMAT = "pack-quantized"

REFUSAL = "Import quota first"
"""Name of the group of layers that no loader but ours accepts. The first group counts, and capitals sort first."""
REFUSED = "import quota before from_pretrained, which cannot run this model alone; README.md says how without it"
"""What is read then: no regular expression has such a name for a group, and the error repeats it."""


class Settings(BaseModel):
    """What config.json says under "quota"."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[2] = 2
    """1 had a scale of its own for every group of weights."""
    scheme: Annotated[QuantizationScheme, FromFile]
    recipe: bool
    """Whether the checkpoint prunes, by the recipe.json beside it."""
    tied: bool = False
    """Whether lm_head multiplies by the integers of the embedding, and has none of its own."""


def settings(config: PretrainedConfig) -> Settings | None:
    """The settings of a model that quota has quantised, None for any other. QuotaError if they cannot be read."""
    found = getattr(config, "quota", None)
    if found is None:
        return None
    if isinstance(found, dict) and found.get("version") == 1:
        raise QuotaError(
            "this checkpoint is of an older version of quota, whose weights these operators cannot read; compress the "
            "original model again"
        )
    try:
        return Settings.model_validate(found)
    except ValidationError as error:
        raise QuotaError(f'config.json, "quota": {first_problem(error)}; update quota or compress again') from None


def mark(model: PreTrainedModel, scheme: QuantizationScheme, recipe: bool) -> None:
    """Note in the model's configuration that it is quantised under `scheme`, and whether a recipe prunes it.

    From then on the model's own `save_pretrained` writes a checkpoint of ours too, less processor and card, and uses
    that it is not made for are refused (quota/checkpoint/guard.py).
    """
    tied = has_tied_head(model)
    model.config.quota = Settings(scheme=scheme, recipe=recipe, tied=tied).model_dump(mode="json")
    if scheme.weight_bits < 16:
        model.config.quantization_config = quantization_config(model, scheme)
    setattr(model, "save_pretrained", partial(_save_weights, model))  # noqa: B010 (its type is that of a method)
    guard(model)


def attached_recipe(model: PreTrainedModel) -> PruningRecipe | None:
    """The recipe that `model` is pruned by, None if it keeps every token."""
    pruner = getattr(model, "quota_pruner", None)
    return pruner.recipe if isinstance(pruner, Pruner) else None


def remember(model: PreTrainedModel, measurements: Measurements) -> None:
    """Keep with `model` what its recipe was found by: it is saved beside the recipe."""
    setattr(model, "quota_measurements", measurements)  # noqa: B010 (the class knows no such attribute)


def save_pretrained(
    model: PreTrainedModel, processor: Any, folder: str | os.PathLike[str], max_shard_size: int | str = "5GB"
) -> None:
    """Save a model that `quota.compress` or `quantize_only` has made, with its processor, recipe and model card.

    `folder` appears complete or not at all, and replaces an older checkpoint of ours. Weights of quantised layers take
    half a byte each, and 2 bytes a group for the scales, those of embedding and lm_head a byte; files hold at most
    `max_shard_size` ("5GB", or bytes). Raises QuotaError for a model that is not quantised, or whose weights have 16
    bits, and for a folder that holds something else.
    """
    scheme = _savable_scheme(model)
    with staged_folder(folder) as stage:
        _write_weights(model, stage, max_shard_size=max_shard_size)
        processor.save_pretrained(stage)
        write_atomically(stage / CARD_FILE, model_card(model, scheme, attached_recipe(model)))
        seal(stage)


def _save_weights(model: PreTrainedModel, save_directory: str | os.PathLike[str], **options: Any) -> None:
    """Weights, configurations, recipe, measurements and manifest: the `save_pretrained` of the model itself."""
    _write_weights(model, save_directory, **options)
    seal(Path(save_directory))


def _write_weights(model: PreTrainedModel, save_directory: str | os.PathLike[str], **options: Any) -> None:
    """Weights, configurations, recipe and measurements; the options are those of transformers' `save_pretrained`."""
    scheme = _savable_scheme(model)
    recipe = attached_recipe(model)
    mark(model, scheme, recipe=recipe is not None)
    type(model).save_pretrained(model, save_directory, **options)
    folder = Path(save_directory)
    if recipe is not None:
        write_recipe(folder, recipe, getattr(model, "quota_measurements", None))
    for weights in folder.glob("*.safetensors"):
        # safetensors makes its files readable by the owner alone.
        shutil.copymode(folder / CONFIG_FILE, weights)


def write_recipe(folder: Path, recipe: PruningRecipe, measurements: Any) -> None:
    """Write `recipe` to the checkpoint in `folder`, and the `Measurements` behind it if there are any."""
    recipe.save(folder / RECIPE_FILE)
    if isinstance(measurements, Measurements):
        measurements.save(folder / MEASUREMENTS_FILE)


def _savable_scheme(model: PreTrainedModel) -> QuantizationScheme:
    found = settings(model.config)
    if found is None:
        raise QuotaError("only a quantised model can be saved; run quota.compress on it first")
    if found.scheme.weight_bits == 16:
        raise QuotaError(
            f"{found.scheme.name} has 16-bit weights, for which there is no packed format; use 4 or 8 bits"
        )
    return found.scheme


def quantization_config(model: nn.Module, scheme: QuantizationScheme) -> dict[str, Any]:
    """The compressed-tensors description of a quantised model, as transformers and vLLM read it.

    Layers of the commonest group sizes are meant by "Linear", others by name. Where something is rotated,
    `transform_config` says so. The group `REFUSAL` sees to it that nobody passes over that, or over an embedding in 8
    bits, for which transformers has no module: no group names it.
    """
    kinds: dict[tuple[int, ...], list[str]] = defaultdict(list)
    ignore = []
    embedding = None
    for name, module in model.named_modules():
        if isinstance(module, QuantizedEmbedding):
            embedding = name, module.spec.inputs.hadamard
        elif isinstance(module, W4A4Linear | TiedHead):
            spec = module.embedding.spec if isinstance(module, TiedHead) else module.spec
            inputs = spec.inputs
            kinds[spec.bits, _group(spec), inputs.bits, _group(inputs), inputs.hadamard].append(name)
        elif isinstance(module, nn.Linear):
            ignore.append(name)
    # Named layers stand before the class: the first target that matches decides.
    ordered = sorted(kinds.items(), key=lambda item: len(item[1]))
    named = [name for _, names in ordered[:-1] for name in names]
    groups, rotations = {}, {}
    for number, ((bits, weight_group, input_bits, group, block), names) in enumerate(ordered):
        last = number == len(ordered) - 1
        targets = ["Linear"] if last else names
        found = {
            "targets": targets,
            "format": FORMAT,
            "weights": _integers(bits, "channel", weight_group, dynamic=False),
        }
        if input_bits < 16:
            found["input_activations"] = _integers(input_bits, "token", group, dynamic=True)
        groups[f"group_{number}"] = found
        if block > 1:
            place = {"targets": targets, "location": "input", "ignore": ignore + named if last else []}
            rotations[f"hadamard_{number}"] = {"type": "hadamard", "head_dim": block, "apply": [place]}
    if embedding is not None and embedding[1] > 1:
        place = {"targets": [embedding[0]], "location": "output", "ignore": []}
        rotations["hadamard_embedding"] = {"type": "hadamard", "head_dim": embedding[1], "apply": [place]}
    described: dict[str, Any] = {
        "quant_method": "compressed-tensors",
        "format": FORMAT,
        "quantization_status": "compressed",
        "ignore": ignore,
        "config_groups": groups,
    }
    if rotations:
        described["transform_config"] = {"config_groups": rotations}
    if rotations or embedding is not None:
        described["config_groups"] = {REFUSAL: {"targets": [f"re:(?P<{REFUSED}>)"]}, **groups}
    return described


def _group(spec: LinearSpec | InputSpec) -> int:
    """Channels that share a scale; 0 where it is the whole row's."""
    return 0 if spec.bits == 8 else spec.group


def _integers(bits: int, whole: str, group: int, dynamic: bool) -> dict[str, Any]:
    """A quantiser with a scale for every group, or for a `whole` row if that is 0."""
    return {
        "num_bits": bits,
        "type": "int",
        "symmetric": bits == 8 or not dynamic,
        "strategy": "group" if group else whole,
        "group_size": group or None,
        "dynamic": dynamic,
    }
