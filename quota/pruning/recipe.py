"""The recipe: a small versioned file that says which visual tokens go, where, and what that was measured on.

It is written once, by calibration, and executed as it stands at every inference: candidate layers, keep
ratios, score weights and normaliser (docs/method.md, equations 1-9), the scheme it was calibrated under, and
fingerprints of the model and of the calibration set. It stores ratios and not counts, as images differ in
size: equation (5) turns them into counts for each image.

Reading is strict. A recipe decides what a model sees, so an unknown key, a key of the wrong type, a
schedule that contradicts itself or another model's recipe is refused with one line, never guessed at.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from quota.errors import QuotaError, check_number, first_problem
from quota.files import read_json, write_atomically
from quota.pruning.schedule import Schedule, check_keep
from quota.pruning.scorers import scorer
from quota.scheme import FromFile, QuantizationScheme

VERSION = 1
Method = Literal["paper", "quota"]
"""How keep ratios are found: by equations (1) to (4), or by measured errors of drops (quota/allocation)."""

# Strict types would refuse the lists that JSON has for tuples, and the object it has for a scheme.
_FromJson = Field(strict=False)


class PruningRecipe(BaseModel):
    """What the Pruner executes. Immutable; raises QuotaError (one line) for anything inconsistent."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    version: Literal[1] = VERSION
    method: Method = "paper"
    layers: Annotated[tuple[int, ...], _FromJson]
    """Candidate decoder layers, ascending. Layer l runs on all tokens present; fewer go on to layer l + 1.

    -1 stands for the projector: fewer enter the first layer.
    """
    keep_ratios: Annotated[tuple[float, ...], _FromJson]
    """One ratio of the original visual tokens a candidate layer, never rising; the last is `keep`."""
    keep: float
    """p_min, the final keep ratio, in (0, 1]. 1.0 drops nothing."""
    temperature: float = Field(default=1.25, gt=0)
    sensitivities: Annotated[tuple[float, ...], _FromJson] = ()
    """S_l of equation (1), one a candidate layer; empty if they were not measured."""
    reference_tokens: int = Field(ge=1, le=10**9)
    """V0, visual tokens of one image after the projector at calibration (the median, if sizes differ)."""
    scheme: Annotated[QuantizationScheme | None, _FromJson, FromFile] = None
    """The scheme it was calibrated under; None is full precision."""
    scorer: str = "composite"
    weights: dict[str, float] = Field(default_factory=lambda given: _default_weights(given))
    """Score weights. Default: those of the scorer, `without_risk` in full precision, which has none."""
    percentiles: Annotated[tuple[float, float], _FromJson] = (1.0, 99.0)
    model_fingerprint: str
    calibration_fingerprint: str = ""
    samples: int = Field(default=0, ge=0)
    seed: int = 0
    versions: dict[str, str] = Field(default_factory=dict)
    """Package -> version at calibration; a record, not checked."""

    def __init__(self, /, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise QuotaError(f"recipe: {first_problem(error)}") from None

    @model_validator(mode="after")
    def _consistent(self) -> PruningRecipe:
        check_keep(self.keep)
        if not self.layers or self.layers[0] < -1 or any(b <= a for a, b in pairwise(self.layers)):
            raise QuotaError(f"layers must be ascending decoder layer numbers, got {list(self.layers)}")
        if len(self.keep_ratios) != len(self.layers):
            raise QuotaError(f"{len(self.keep_ratios)} keep_ratios for {len(self.layers)} layers; give one each")
        for ratio in self.keep_ratios:
            check_keep(ratio)
        if any(b > a for a, b in pairwise(self.keep_ratios)) or self.keep_ratios[-1] != self.keep:
            raise QuotaError(f"keep_ratios must never rise and end at keep={self.keep}, got {list(self.keep_ratios)}")
        if self.sensitivities and len(self.sensitivities) != len(self.layers):
            raise QuotaError(f"{len(self.sensitivities)} sensitivities for {len(self.layers)} layers; give one each")
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise QuotaError(f"percentiles must satisfy 0 <= low < high <= 100, got {low} and {high}")
        self._check_weights()
        return self

    def _check_weights(self) -> None:
        known = scorer(self.scorer).WEIGHTS
        for name, weight in self.weights.items():
            if name not in known:
                raise QuotaError(f"scorer {self.scorer!r} has no metric {name!r}; known: {', '.join(known)}")
            check_number(f"the weight of {name!r}", weight, at_least=0)
        if known and not any(self.weights.values()):
            raise QuotaError("at least one score weight must be above 0")
        if self.scheme is None and self.weights.get("risk"):
            raise QuotaError("'risk' has a weight but full precision has no quantisation risk; remove it from weights")

    @property
    def schedule(self) -> Schedule:
        """Layers and keep ratios."""
        return Schedule(self.layers, self.keep_ratios)

    def counts(self, tokens: int) -> list[int]:
        """Equation (5) at each candidate layer, for an image of `tokens` visual tokens."""
        return self.schedule.counts(tokens)

    def tokens_per_layer(self, tokens: int, total_layers: int) -> list[int]:
        """How many of `tokens` visual tokens enter each of the decoder's `total_layers` layers.

        Raises QuotaError if the recipe names a layer that the decoder does not have.
        """
        if self.layers[-1] >= total_layers:
            raise QuotaError(f"the recipe prunes layer {self.layers[-1]}, the decoder has {total_layers} (from 0)")
        return self.schedule.entering(tokens, total_layers)

    def verify(self, *, model_fingerprint: str, scheme: QuantizationScheme | None) -> None:
        """Raise QuotaError unless the recipe is for this model under this scheme (None: full precision)."""
        if self.model_fingerprint != model_fingerprint:
            raise QuotaError(
                f"the recipe was made for another model (fingerprint {self.model_fingerprint[:12]}, this one "
                f"has {model_fingerprint[:12]}); make one for this model with `quota compress`"
            )
        if self.scheme != scheme:
            raise QuotaError(
                f"the recipe was calibrated under another scheme ({_differences(self.scheme, scheme)}); "
                "make one under this scheme with `quota compress`"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the recipe as JSON, in one step: `path` holds all of it or what it held before."""
        write_atomically(path, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PruningRecipe:
        """Read a recipe. QuotaError, naming the file, if any of it is missing, unknown, wrong or too new."""
        file = Path(path)
        if not file.exists():
            raise QuotaError(f"{path}: no such recipe; `quota compress` writes one")
        fields = read_json(file, "recipe")
        version = fields.get("version")
        if version != VERSION:
            raise QuotaError(f"{path}: recipe version {version!r}, this quota reads {VERSION}; update quota")
        try:
            return cls(**fields)
        except QuotaError as error:
            raise QuotaError(f"{path}: {error}") from None


def without_risk(weights: Mapping[str, float]) -> dict[str, float]:
    """Score weights for full precision, which has no risk: the others grow in proportion to fill its place."""
    others = {name: weight for name, weight in weights.items() if name != "risk"}
    total, left = sum(weights.values()), sum(others.values())
    return {name: weight * total / left for name, weight in others.items()} if left else others


def _default_weights(given: Mapping[str, Any]) -> dict[str, float]:
    weights = scorer(given["scorer"]).WEIGHTS
    return without_risk(weights) if given["scheme"] is None else dict(weights)


def _differences(recipe: QuantizationScheme | None, model: QuantizationScheme | None) -> str:
    if recipe is None or model is None:
        names = ("full precision" if scheme is None else scheme.name for scheme in (recipe, model))
        return "recipe {}, model {}".format(*names)
    ours, theirs = recipe.model_dump(), model.model_dump()
    return ", ".join(f"{key}: recipe {ours[key]}, model {theirs[key]}" for key in ours if ours[key] != theirs[key])
