"""What a checkpoint or a recipe is, read from its files without loading the model."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import safe_open

from quota.allocation.frontier import Point, frontier, point
from quota.allocation.measurements import Measurements
from quota.checkpoint.described import Described, described
from quota.checkpoint.named import in_one_line
from quota.errors import QuotaError
from quota.evaluation.footprint import disk_bytes
from quota.pruning.recipe import PruningRecipe
from quota.pruning.schedule import prefill_flops_ratio
from quota.scheme import QuantizationScheme

_PARTS = (".weight_packed", ".weight_scale", ".weight_shape")


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
    measurements: Measurements | None = None
    """What the recipe was found by."""
    chosen: Point | None = None
    """What the recipe costs, and does to the answer, by these measurements."""
    text_config: Any = None
    """Of the decoder."""

    @cached_property
    def frontier(self) -> list[Point]:
        """What other budgets would buy; empty without measurements."""
        return [] if self.measurements is None else frontier(self.measurements, self.text_config)

    @property
    def layer_average_keep(self) -> float | None:
        """Mean keep ratio over all decoder layers: higher than the final one that "keep 30%" names."""
        if self.visual_tokens_per_layer is None or self.recipe is None:
            return None
        tokens = self.visual_tokens_per_layer
        return sum(tokens) / (len(tokens) * self.recipe.reference_tokens)

    def figures(self) -> dict[str, Any]:
        """What `quota compress --json` writes; `quota inspect` adds the frontier."""
        return {
            "recipe": self.recipe and self.recipe.model_dump(mode="json"),
            "scheme": self.scheme and self.scheme.model_dump(mode="json"),
            "quantized_layers": self.packed and self.packed.layers,
            "bytes_per_weight": self.packed and self.packed.bytes_per_weight,
            "disk_bytes": self.disk_bytes,
            "visual_tokens_per_layer": self.visual_tokens_per_layer,
            "layer_average_keep": self.layer_average_keep,
            "prefill_flops_ratio": self.prefill_flops_ratio,
            "chosen": self.chosen and self.chosen.figures(),
        }


def inspect_path(path: Path) -> Inspection:
    """Inspect a checkpoint folder written by `quota compress`, or a recipe file.

    Raises QuotaError for anything else.
    """
    if not path.exists():
        raise QuotaError(f"{path} does not exist; give a checkpoint or a recipe that `quota compress` wrote")
    if not path.is_dir():
        recipe = PruningRecipe.load(path)
        return Inspection(recipe, recipe.scheme)
    found = described(path)
    with in_one_line(str(path)):
        return _inspect_checkpoint(path, found)


def _inspect_checkpoint(path: Path, found: Described) -> Inspection:
    packed, recipe, scheme = packed_weights(path), found.recipe, found.settings.scheme
    if recipe is None:
        return Inspection(None, scheme, packed, disk_bytes(path))
    text = found.config.get_text_config()
    tokens = recipe.tokens_per_layer(recipe.reference_tokens, text.num_hidden_layers)
    flops = prefill_flops_ratio(tokens, recipe.reference_tokens, text)
    inspection = Inspection(recipe, scheme, packed, disk_bytes(path), tokens, flops)
    if (measured := found.measurements) is None:
        return inspection
    chosen = None
    # A recipe that somebody has put in by hand may cut where nothing was measured.
    with suppress(QuotaError):
        chosen = point(recipe.schedule, measured, text)
    return replace(inspection, measurements=measured, chosen=chosen, text_config=text)


def packed_weights(folder: Path) -> PackedWeights | None:
    """Count the packed layers of a checkpoint; None if it has none."""
    layers = weights = size = 0
    for file in sorted(folder.glob("*.safetensors")):
        # A layer's tensors may be in several.
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (it is no dictionary)
                layers += name.endswith(".weight_packed")
                if name.endswith(".weight_shape"):
                    weights += math.prod(tensors.get_tensor(name).tolist())
                if name.endswith(_PARTS):
                    size += tensors.get_tensor(name).nbytes
    return PackedWeights(layers, weights, size) if layers else None
