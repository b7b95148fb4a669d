"""What a checkpoint or a recipe is, read from its files without loading the model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import AutoConfig

from quota.checkpoint.named import in_one_line
from quota.checkpoint.save import RECIPE_FILE, settings
from quota.errors import QuotaError
from quota.evaluation.footprint import disk_bytes
from quota.files import is_checkpoint
from quota.pruning.recipe import PruningRecipe
from quota.pruning.schedule import prefill_flops_ratio
from quota.scheme import QuantizationScheme

_PACKED = ".weight_packed"


@dataclass(frozen=True)
class PackedWeights:
    """The quantised layers of a checkpoint: how many, their weights, and the bytes they take with their scales."""

    layers: int
    weights: int
    bytes: int

    @property
    def bytes_per_weight(self) -> float:
        return self.bytes / self.weights


@dataclass(frozen=True)
class Inspection:
    """A recipe, and, where a checkpoint was given, what stands around it (None for a lone recipe)."""

    recipe: PruningRecipe | None
    scheme: QuantizationScheme | None
    packed: PackedWeights | None = None
    disk_bytes: int | None = None
    visual_tokens_per_layer: list[int] | None = None
    """For an image of V0 tokens, the recipe's reference."""
    prefill_flops_ratio: float | None = None

    @property
    def layer_average_keep(self) -> float | None:
        """Mean keep ratio over all decoder layers: higher than the final one that "keep 30%" names."""
        if self.visual_tokens_per_layer is None or self.recipe is None:
            return None
        tokens = self.visual_tokens_per_layer
        return sum(tokens) / (len(tokens) * self.recipe.reference_tokens)

    def figures(self) -> dict[str, Any]:
        """What `quota inspect --json` writes."""
        return {
            "recipe": self.recipe and self.recipe.model_dump(mode="json"),
            "scheme": self.scheme and self.scheme.model_dump(mode="json"),
            "quantized_layers": self.packed and self.packed.layers,
            "bytes_per_weight": self.packed and self.packed.bytes_per_weight,
            "disk_bytes": self.disk_bytes,
            "visual_tokens_per_layer": self.visual_tokens_per_layer,
            "layer_average_keep": self.layer_average_keep,
            "prefill_flops_ratio": self.prefill_flops_ratio,
        }


def inspect_path(path: Path) -> Inspection:
    """Inspect a checkpoint folder written by `quota compress`, or a recipe file.

    Raises QuotaError for anything else.
    """
    if not path.is_dir():
        recipe = PruningRecipe.load(path)
        return Inspection(recipe, recipe.scheme)
    if not is_checkpoint(path):
        raise QuotaError(f"{path} was not written by quota; make a checkpoint with `quota compress`")
    with in_one_line(str(path)):
        return _inspect_checkpoint(path)


def _inspect_checkpoint(path: Path) -> Inspection:
    config = AutoConfig.from_pretrained(path)
    found = settings(config)
    if found is None:
        raise QuotaError(f'{path}: config.json says nothing under "quota"; compress the model again')
    packed = packed_weights(path)
    if not found.recipe:
        return Inspection(None, found.scheme, packed, disk_bytes(path))
    recipe = PruningRecipe.load(path / RECIPE_FILE)
    text = config.get_text_config()
    tokens = recipe.tokens_per_layer(recipe.reference_tokens, text.num_hidden_layers)
    flops = prefill_flops_ratio(tokens, recipe.reference_tokens, text)
    return Inspection(recipe, found.scheme, packed, disk_bytes(path), tokens, flops)


def packed_weights(folder: Path) -> PackedWeights | None:
    """Count the packed layers of a checkpoint; None if it has none."""
    layers = weights = size = 0
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            names = set(tensors.keys())
            for name in names:
                if not name.endswith(_PACKED):
                    continue
                layer = name.removesuffix(_PACKED)
                layers += 1
                weights += math.prod(tensors.get_tensor(f"{layer}.weight_shape").tolist())
                parts = [part for part in names if part.startswith(f"{layer}.weight")]
                size += sum(tensors.get_tensor(part).nbytes for part in parts)
    return PackedWeights(layers, weights, size) if layers else None
