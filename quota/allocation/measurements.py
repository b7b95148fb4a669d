"""What calibration measured about drops: a small versioned file beside the recipe, from which other recipes are made.

It holds the table of single cuts, the whole schedules that were tried, the curves that the published method reads, what
the typical prompt takes in the KV cache and, if the machine was timed, in time. A recipe for another budget needs
nothing else (quota/allocation/choose.py). Reading is as strict as that of a recipe; those of another model are refused.
"""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from quota.allocation.cache_cost import CacheCost
from quota.allocation.clock import Clock
from quota.allocation.prompt import TypicalPrompt
from quota.calibration.curves import Curves
from quota.errors import QuotaError, first_problem
from quota.files import read_json, write_atomically
from quota.pruning.schedule import Schedule
from quota.scheme import FromFile, QuantizationScheme

VERSION = 1
_LARGEST = 1e9
"""No measurement is larger; sums of larger numbers would be none."""
_LEAST = 1e-9
_Error = Annotated[float, Field(ge=0, le=_LARGEST)]
_Row = Annotated[dict[int, _Error], Field(min_length=1, max_length=64)]


class Tried(BaseModel):
    """A schedule that was measured whole, and its error E in nats."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    layers: tuple[int, ...]
    counts: tuple[int, ...]
    """Visual tokens of V0 left after each."""
    error: _Error


class Measurements(BaseModel):
    """Immutable; made by `of` or `load`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    version: Literal[1] = VERSION
    model_fingerprint: str
    calibration_fingerprint: str
    scheme: Annotated[QuantizationScheme, FromFile]
    scorer: str
    """That chose the tokens of every cut."""
    reference_tokens: int = Field(ge=1, le=10**9)
    """V0."""
    curves: Curves
    errors: Annotated[dict[int, _Row], Field(min_length=1)]
    """E_l(k) of single cuts, in nats (quota/allocation/drops.py)."""
    tried: Annotated[tuple[Tried, ...], Field(max_length=10_000)] = ()
    prompt: TypicalPrompt
    cache: CacheCost
    clock: Clock | None = None
    """None if no machine was timed."""

    @classmethod
    def of(cls, **fields: Any) -> Measurements:
        """From its fields. QuotaError (one line) for anything inconsistent, and numbers that are none."""
        try:
            return cls(**fields)
        except ValidationError as error:
            raise QuotaError(f"measurements: {first_problem(error)}") from None

    @model_validator(mode="after")
    def _consistent(self) -> Measurements:
        lengths = {len(curve) for curve in vars(self.curves).values()}
        if len(lengths) != 1 or not self.depth:
            raise QuotaError("the curves must have one point each for every decoder layer")
        if any(abs(number) > _LARGEST for curve in vars(self.curves).values() for number in curve):
            raise QuotaError(f"the curves must hold numbers of at most {_LARGEST:g}")
        rows = list(self.errors.values())
        if any(row.keys() != rows[0].keys() for row in rows):
            raise QuotaError("every row of the table must have the same counts")
        self._check(sorted(self.errors), sorted(rows[0], reverse=True))
        for one in self.tried:
            if len(one.layers) != len(one.counts):
                raise QuotaError(f"a schedule has {len(one.layers)} layers and {len(one.counts)} counts; give one each")
            self._check(one.layers, one.counts)
        if not (_LEAST <= self.cache.token <= _LARGEST and 0 <= self.cache.rest <= _LARGEST):
            raise QuotaError(f"the cache must hold a number of bytes above 0 a token, and at most {_LARGEST:g}")
        clock = self.clock
        if clock and not all(_LEAST <= one <= _LARGEST for one in (clock.rest, clock.layer, clock.full)):
            raise QuotaError(f"the clock must hold times above 0 and at most {_LARGEST:g}")
        if clock and not (0 <= clock.cut <= _LARGEST and clock.depth == self.depth):
            raise QuotaError(f"the clock must be one of {self.depth} decoder layers")
        return self

    def _check(self, layers: tuple[int, ...] | list[int], counts: tuple[int, ...] | list[int]) -> None:
        """That there are such layers, ascending, and such counts, never rising."""
        if any(a >= b for a, b in pairwise(layers)) or not all(-1 <= layer < self.depth for layer in layers):
            raise QuotaError(f"layers must be ascending numbers from -1 to {self.depth - 1}, got {list(layers)}")
        if any(a < b for a, b in pairwise(counts)) or not all(1 <= count <= self.reference_tokens for count in counts):
            raise QuotaError(f"counts must never rise and be of {self.reference_tokens} tokens, got {list(counts)}")

    @property
    def depth(self) -> int:
        """Decoder layers."""
        return len(self.curves.sensitivity)

    def whole(self) -> dict[Schedule, float]:
        """The schedules that were measured whole, with their errors."""
        tokens = self.reference_tokens
        return {Schedule.of_counts(zip(one.layers, one.counts, strict=True), tokens): one.error for one in self.tried}

    def verify(self, *, model_fingerprint: str, scheme: QuantizationScheme | None, depth: int) -> None:
        """Raise QuotaError unless they are of this model, with `depth` decoder layers, under this scheme."""
        if self.model_fingerprint != model_fingerprint:
            raise QuotaError(
                f"the measurements are of another model (fingerprint {self.model_fingerprint[:12]}, this one has "
                f"{model_fingerprint[:12]}); compress this one again to have its own"
            )
        if self.depth != depth:
            raise QuotaError(
                f"the measurements are of {self.depth} decoder layers, the model has {depth}; compress again"
            )
        if self.scheme != scheme:
            raise QuotaError("the measurements were made under another scheme; compress again to have them for this")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write them as JSON, in one step: `path` holds all of it or what it held before."""
        write_atomically(path, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Measurements:
        """Read them. QuotaError, naming the file, if any of it is missing, unknown, wrong or too new."""
        fields = read_json(Path(path), "file of measurements")
        version = fields.get("version")
        if version != VERSION:
            raise QuotaError(f"{path}: measurements of version {version!r}, this quota reads {VERSION}; update quota")
        try:
            # As JSON, which has objects for dataclasses, lists for tuples and text for the keys of a table.
            return cls.model_validate_json(json.dumps(fields))
        except ValidationError as error:
            raise QuotaError(f"{path}: {first_problem(error)}") from None
