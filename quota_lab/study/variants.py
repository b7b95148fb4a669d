"""One way to compress a model, in full: equal variants have equal outcomes, so an outcome is stored under its hash."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from quota.scheme import QuantizationScheme

Rule = Literal["paper", "uniform", "one-shot", "linear", "reversed", "withdraw", "measured", "added up", "first word"]
"""The last three are ours: as it is, without measuring schedules whole, and by the first word of each answer."""
MEASURED: tuple[Rule, ...] = ("measured", "added up", "first word")


class Pruning(BaseModel):
    """Which visual tokens are dropped, and where. `keep`, `as_costly_as`, `compute` and `prefill` say how many."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scorer: str = "composite"
    weights: dict[str, float] | None = None
    """None: those of the scorer."""
    layers: tuple[int, ...] | None = None
    """Candidate layers; None: found by the rule on the calibration curves."""
    depths: tuple[float, ...] | None = None
    """Candidate layers as shares of the decoder's depth, instead of `layers`."""
    schedule: Rule = "paper"
    keep: float | None = 0.30
    """Final keep ratio."""
    as_costly_as: float | None = None
    """As much prefill arithmetic as the published schedule at this final keep ratio, on the same calibration."""
    compute: float | None = None
    """Prefill arithmetic of the visual tokens, relative to keeping all; of the schedule "measured" also a limit."""
    prefill: float | None = None
    """Prefill time relative to keeping all tokens, as the machine measures it."""
    temperature: float = 1.25
    scoring: Literal["deployed", "full precision"] = "deployed"
    """Whose forward pass the scores come from."""


class Variant(BaseModel):
    """A compressed model. `scheme` None is full precision, `pruning` None keeps every token."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scheme: QuantizationScheme | None = QuantizationScheme()
    pruning: Pruning | None = None
    samples: int = 128
    """Calibration samples."""
    graph: Literal["unpruned", "pruned", "joint"] = "unpruned"
    """What the quantiser is calibrated on: all tokens, those that `pruning` leaves in full precision, or, in rounds,
    those that it leaves under the deployed operators."""
    rounds: int = 2
    """Of "joint": sweeps, each but the first in the graph of the recipe that the one before it led to."""
    seed: int = 0
    """Of the calibration samples."""

    def measured_on(self) -> Variant:
        """The variant whose sweep the recipe of this one is made from; it keeps every token, or is the round before."""
        if self.graph == "joint" and self.rounds > 2:
            return self.model_copy(update={"rounds": self.rounds - 1})
        return Variant(scheme=self.scheme or QuantizationScheme(), samples=self.samples, seed=self.seed)

    @property
    def calibrated(self) -> bool:
        """Whether calibration samples decide anything."""
        return self.scheme is not None or self.pruning is not None

    def canonical(self) -> Variant:
        """The same variant without what does not matter: the seed of what is not calibrated."""
        return self if self.calibrated else self.model_copy(update={"samples": 0, "seed": 0})
