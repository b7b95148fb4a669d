"""What a model gained in time and memory, as bars: a panel of `quota curves`, from what `quota bench e2e` wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quota.errors import QuotaError
from quota.files import read_json
from quota_lab.study.picture import GREY, GRID, OURS

_JOBS = {"ttft": "time to first token", "decode": "time for each further token", "memory": "peak memory of the process"}
_VARIANTS = {"quantized": "quantised only", "quota": "QUOTA"}
_MODEL = "realistic"


@dataclass(frozen=True)
class Gains:
    """Shares of the dense model's time and memory, in percent."""

    shares: Mapping[str, Mapping[str, float]]
    """Job -> variant -> percent."""
    device: str
    height: float = 5.0

    @classmethod
    def read(cls, file: Path) -> Gains:
        """QuotaError if the file does not hold that of the realistic model."""
        figures, shares = read_json(file, "benchmark"), {job: dict[str, float]() for job in _JOBS}
        try:
            for row in figures["rows"]:
                model, _, variant = row["shape"].partition(" ")
                name = _VARIANTS.get(variant.partition(",")[0])
                if row["job"] in shares and model == _MODEL and name:
                    shares[row["job"]][name] = 100 / row["ratio"]
            found = cls(shares, f"{figures['device']}, {figures['threads']} threads")
        except (KeyError, TypeError, AttributeError, ZeroDivisionError):
            shares = {}
        if not shares or any(len(each) < len(_VARIANTS) for each in shares.values()):
            raise QuotaError(f"{file} is no benchmark of the realistic model; give what `quota bench e2e --json` wrote")
        return found

    def draw(self, axes: Any) -> None:
        """Three bars a job: dense, quantised, ours."""
        ticks = []
        for group, (job, label) in enumerate(_JOBS.items()):
            values = {"bf16": 100.0, **self.shares[job]}
            for place, ((name, share), colour) in enumerate(zip(values.items(), (GRID, GREY, OURS), strict=True)):
                height = -(4 * group + place)
                axes.barh(height, share, height=0.9, color=colour, label=None if group else name)
                axes.text(share + 1, height, f"{share:.0f}%", va="center", fontsize=9)
            ticks.append((-(4 * group + 1), label))
        axes.set_yticks(*zip(*ticks, strict=True))
        axes.set_xlim(0, 112)
        axes.set_xlabel("of the dense model in bf16, %")
        axes.set_title(f"A LLaVA of 1.2B parameters ({self.device})", fontsize=11)
        axes.legend(fontsize=8, frameon=False, loc="lower right")
