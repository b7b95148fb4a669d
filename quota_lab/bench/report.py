"""What a benchmark found: rows that compare one figure with its baseline, and the machine they hold for."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from quota.ops import machine

Job = Literal["linear", "decode_attention", "ttft", "decode", "memory", "overhead"]

UNITS: dict[Job, str] = {
    "linear": "s",
    "decode_attention": "s",
    "ttft": "s",
    "decode": "tokens/s",
    "memory": "bytes",
    "overhead": "s",
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
        return self.baseline_value / self.value

    def figures(self) -> dict[str, Any]:
        return asdict(self) | {"ratio": self.ratio}


@dataclass
class Report:
    """Rows in the order in which they were measured."""

    rows: list[Row] = field(default_factory=list)
    device: str = field(default_factory=machine.processor)
    threads: int = field(default_factory=torch.get_num_threads)

    def figures(self) -> dict[str, Any]:
        """What `quota bench --json` writes."""
        return {"device": self.device, "threads": self.threads, "rows": [row.figures() for row in self.rows]}
