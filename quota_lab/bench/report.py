"""What a benchmark found: rows that compare one figure with its baseline, and the machine they hold for."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from quota.ops import machine
from quota_lab.bench.busy import LARGEST_SHARE

Job = Literal["linear", "decode_attention", "ttft", "decode", "memory", "overhead", "prefill", "step"]

UNITS: dict[Job, str] = {
    "linear": "s",
    "decode_attention": "s",
    "ttft": "s",
    "decode": "tokens/s",
    "memory": "bytes",
    "overhead": "s",
    "prefill": "s",
    "step": "s",
}


@dataclass(frozen=True)
class Row:
    """One comparison. `value` and `baseline_value` are in `UNITS[job]`."""

    job: Job
    shape: str
    backend: str
    """The operator backends that ran."""
    value: float
    baseline: str
    baseline_value: float

    @property
    def ratio(self) -> float:
        """How many times better than the baseline: less time or memory, or more tokens a second."""
        if self.job == "decode":
            return self.value / self.baseline_value
        return self.baseline_value / self.value if self.value else math.inf

    def figures(self) -> dict[str, Any]:
        return asdict(self) | {"ratio": self.ratio}


@dataclass
class Report:
    """Rows in the order in which they were measured."""

    rows: list[Row] = field(default_factory=list)
    device: str = field(default_factory=machine.processor)
    threads: int = field(default_factory=torch.get_num_threads)
    others: float | None = None
    """Share of the machine that other processes took meanwhile; None if nobody can tell."""

    def warning(self) -> str | None:
        """What is to be said of these figures; None if the machine was idle otherwise."""
        if self.others is None or self.others <= LARGEST_SHARE:
            return None
        return f"other processes took {self.others:.0%} of this machine meanwhile: measure again when it is idle"

    def figures(self) -> dict[str, Any]:
        """What `quota bench --json` writes."""
        return {
            "device": self.device,
            "threads": self.threads,
            "others": self.others,
            "rows": [row.figures() for row in self.rows],
        }
