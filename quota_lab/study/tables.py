"""The tables of the study: for each, its rows, and the row that the others are compared with.

`FULL` stands first in every table, as retention is measured against it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from quota.errors import QuotaError
from quota.pruning.scorers.composite import WEIGHTS
from quota.pruning.scorers.information import NAME
from quota.scheme import QuantizationScheme
from quota_lab.study.methods import methods
from quota_lab.study.variants import MEASURED, Pruning, Rule, Variant
from quota_lab.testbeds.methods import method_scheme

FULL = "full precision"
QUANTIZED = "quantised only"
PAPER = "QUOTA as published"
JOINT = "QUOTA"

_KEEPS = (0.5, 0.4, 0.3, 0.2, 0.1, 0.05)
_BUDGETS = (0.25, 0.2)
"""Prefill arithmetic of the visual tokens at which methods are compared."""
_NEAREST = ("DivPrune", "VisionZip", "CDPruner")
"""Methods that come nearest to ours at these."""
_TIMES = (0.9, 0.8, 0.7)
"""Prefill time, relative to keeping all tokens, at which they are."""


@dataclass(frozen=True)
class Table:
    """Rows in order, each a variant whose seed is yet to be set."""

    title: str
    rows: dict[str, Variant]
    against: str
    """Name of the row that the others are compared with, or what stands before the comma in the names of several."""

    def rival(self, name: str) -> str | None:
        """The row that row `name` is compared with: the one `against`, or the one of them at the same budget."""
        rival = self.against if self.against in self.rows else f"{self.against}, {name.rpartition(', ')[2]}"
        return rival if rival in self.rows and rival != name else None


def table(name: str) -> Table:
    """The table of that name; QuotaError with the known names if there is none."""
    if name not in TABLES:
        raise QuotaError(f"unknown study {name!r}; known: {', '.join(TABLES)}")
    title, against, rows = TABLES[name]
    return Table(title, {FULL: Variant(scheme=None), QUANTIZED: Variant()} | rows(), against)


def joint(keep: float | None = 0.30, compute: float | None = None, prefill: float | None = None) -> Pruning:
    """QUOTA's own method; without `compute` or `prefill` it may cost what the published schedule costs."""
    return Pruning(scorer=NAME, schedule="measured", keep=keep, compute=compute, prefill=prefill)


def _stage_wise() -> dict[str, Variant]:
    stage = _alone()
    ours = Pruning(scorer=NAME, schedule="linear")
    return {
        "pruned only": Variant(scheme=None, pruning=stage),
        "quantise, then prune": Variant(pruning=stage),
        "prune, then quantise": Variant(pruning=stage, graph="pruned"),
        "quantise, then prune by our score": Variant(pruning=ours),
        "prune by our score, then quantise": Variant(pruning=ours, graph="pruned"),
        PAPER: Variant(pruning=Pruning()),
        JOINT: Variant(pruning=joint()),
    }


def _rounds() -> dict[str, Variant]:
    """Ours, and with a quantiser calibrated on what ours keeps, in rounds."""
    rounds = {f"joint, {rounds} rounds": Variant(pruning=joint(), graph="joint", rounds=rounds) for rounds in (2, 3)}
    return {JOINT: Variant(pruning=joint())} | rounds


def _schemes() -> dict[str, Variant]:
    rows = {"W4A4KV4, round to nearest": method_scheme("rtn"), "W4A8KV4": QuantizationScheme(activation_bits=8)}
    return {name: Variant(scheme=scheme) for name, scheme in rows.items()}


def _keep() -> dict[str, Variant]:
    rows = {f"{JOINT}, keep {keep:.0%}": Variant(pruning=joint(keep)) for keep in _KEEPS}
    return rows | {f"{PAPER}, keep {keep:.0%}": Variant(pruning=Pruning(keep=keep)) for keep in _KEEPS}


def _compute() -> dict[str, Variant]:
    return {f"compute {share:.0%}": Variant(pruning=joint(None, share)) for share in (0.5, 0.4, 0.3, 0.25, 0.2, 0.15)}


def _parts() -> dict[str, Variant]:
    """From the published method to ours, one part at a time, at one final keep ratio and one budget."""
    keep = 0.1
    return {
        PAPER: Variant(pruning=Pruning(keep=keep)),
        "attention alone": Variant(pruning=Pruning(keep=keep, weights={"inter": 1.0})),
        "farthest first": Variant(pruning=Pruning(keep=keep, scorer="divprune")),
        "information": Variant(pruning=Pruning(keep=keep, scorer=NAME)),
        "farthest first, our schedule": Variant(pruning=joint(keep).model_copy(update={"scorer": "divprune"})),
        JOINT: Variant(pruning=joint(keep)),
    }


def _measuring() -> dict[str, Variant]:
    """Our schedule without one of the two ways in which more than single cuts and first words are measured."""
    rows = {}
    for compute in (0.2, 0.1):
        ours = joint(None, compute)
        rows[f"{JOINT}, {compute:.0%}"] = Variant(pruning=ours)
        for schedule in MEASURED[1:]:
            rows[f"{schedule}, {compute:.0%}"] = Variant(pruning=ours.model_copy(update={"schedule": schedule}))
    return rows


def _weights() -> dict[str, Variant]:
    rows = {"default": Variant(pruning=Pruning())}
    rows |= {f"without {name}": Variant(pruning=Pruning(weights=_without(name))) for name in WEIGHTS}
    rows |= {f"{name} alone": Variant(pruning=Pruning(weights={name: 1.0})) for name in WEIGHTS}
    for name in WEIGHTS:
        for factor in (0.5, 2.0):
            rows[f"{name} x {factor:g}"] = Variant(pruning=Pruning(weights=_scaled(name, factor)))
    return rows


def _schedule() -> dict[str, Variant]:
    rules: tuple[Rule, ...] = ("paper", "uniform", "one-shot", "linear", "reversed")
    rows = {f"{rule}, keep 30%": Variant(pruning=Pruning(schedule=rule)) for rule in rules}
    rows |= {
        f"{rule}, as costly as paper": Variant(pruning=Pruning(schedule=rule, keep=None, as_costly_as=0.3))
        for rule in rules[1:]
    }
    return rows


def _scoring() -> dict[str, Variant]:
    plain = _without("risk")
    return {
        "scored under W4A4, with risk": Variant(pruning=Pruning()),
        "scored under W4A4, without risk": Variant(pruning=Pruning(weights=plain)),
        "scored in full precision": Variant(pruning=Pruning(weights=plain, scoring="full precision")),
    }


def _kv_bits() -> dict[str, Variant]:
    rows = {}
    for bits in (16, 8, 4, 3, 2):
        scheme = QuantizationScheme(kv_bits=bits)
        rows[f"W4A4KV{bits}, all tokens"] = Variant(scheme=scheme)
        rows[f"W4A4KV{bits}, pruned"] = Variant(scheme=scheme, pruning=Pruning())
    return rows


def _calibration() -> dict[str, Variant]:
    return {f"{count} samples": Variant(pruning=Pruning(), samples=count) for count in (8, 32, 128, 512)}


def _temperature() -> dict[str, Variant]:
    values = (0.1, 0.5, 1.25, 5.0)
    return {f"tau {value:g}": Variant(pruning=Pruning(temperature=value)) for value in values}


def _layers() -> dict[str, Variant]:
    rows = {"by the rule": Variant(pruning=Pruning())}
    rows |= {
        f"layers {first} to {first + 2}": Variant(pruning=Pruning(layers=(first, first + 1, first + 2)))
        for first in (0, 1, 3, 4, 5)
    }
    return rows


def _methods() -> dict[str, Variant]:
    rows = {}
    for compute in _BUDGETS:
        rows[f"{JOINT}, {compute:.0%}"] = Variant(pruning=joint(None, compute))
        for name, pruning in methods(compute).items():
            rows[f"{name}, {compute:.0%}"] = Variant(pruning=pruning)
    return rows


def _nearest() -> dict[str, Variant]:
    """What a model that is slow to ask should be asked first."""
    rows = {
        f"{JOINT}, keep 30%": Variant(pruning=joint()),
        f"{PAPER}, keep 30%": Variant(pruning=Pruning()),
        "quantise then prune, keep 30%": Variant(pruning=_alone()),
    }
    for compute in _BUDGETS:
        rows[f"{JOINT}, {compute:.0%}"] = Variant(pruning=joint(None, compute))
        rows |= {f"{name}, {compute:.0%}": Variant(pruning=methods(compute)[name]) for name in _NEAREST}
    return rows


def _time() -> dict[str, Variant]:
    rows = {}
    for prefill in _TIMES:
        rows[f"{JOINT}, {prefill:.0%}"] = Variant(pruning=joint(None, prefill=prefill))
        for name, pruning in methods(prefill=prefill).items():
            rows[f"{name}, {prefill:.0%}"] = Variant(pruning=pruning)
    return rows


def _alone() -> Pruning:
    """The published pruning, untold of quantisation: no risk in its score, no sensitivities in its schedule."""
    return Pruning(weights=_without("risk"), schedule="linear")


def _without(name: str) -> dict[str, float]:
    """The default weights less one; the others grow in proportion to fill its place."""
    left = {other: weight for other, weight in WEIGHTS.items() if other != name}
    return {other: weight / sum(left.values()) for other, weight in left.items()}


def _scaled(name: str, factor: float) -> dict[str, float]:
    given = {other: weight * (factor if other == name else 1.0) for other, weight in WEIGHTS.items()}
    return {other: weight / sum(given.values()) for other, weight in given.items()}


Rows = Callable[[], dict[str, Variant]]
TABLES: dict[str, tuple[str, str, Rows]] = {
    "stage-wise": ("Jointly or one after the other, final keep ratio 30%", JOINT, _stage_wise),
    "rounds": ("The quantiser calibrated on what is kept, in rounds, final keep ratio 30%", JOINT, _rounds),
    "schemes": ("Bits, every token kept", QUANTIZED, _schemes),
    "keep": ("Final keep ratio", QUANTIZED, _keep),
    "compute": ("Budget of prefill arithmetic", QUANTIZED, _compute),
    "parts": ("What each part brings, final keep ratio 10%", PAPER, _parts),
    "measuring": ("What our schedule is chosen by", JOINT, _measuring),
    "weights": ("Weights of the score, final keep ratio 30%", "default", _weights),
    "schedule": ("Rule of the keep ratios", "paper, keep 30%", _schedule),
    "scoring": ("Whose forward pass the scores come from", "scored under W4A4, with risk", _scoring),
    "kv-bits": ("Bits of the KV cache", "W4A4KV4, pruned", _kv_bits),
    "calibration": ("Calibration samples", "128 samples", _calibration),
    "temperature": ("Temperature of equation (3)", "tau 1.25", _temperature),
    "layers": ("Candidate layers", "by the rule", _layers),
    "methods": ("Other methods at the same compute", JOINT, _methods),
    "nearest": ("The nearest methods, and stages one after the other", JOINT, _nearest),
    "time": ("Other methods in the same prefill time", JOINT, _time),
}
