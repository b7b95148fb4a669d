"""Two halves of a suite: one to develop on, one to report; claims are made on a third part (quota_lab/study/sealed.py).

What was tuned on a question may not be reported on it. Pictures are numbered in the order in which the suite first
asks about them; questions about even pictures are the development half, about odd ones the reported half. So no
picture is in both, and both halves ask every task alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from quota.errors import QuotaError
from quota.samples import Sample

Half = Literal["development", "reported", "sealed", "all"]
HALVES: tuple[Half, ...] = ("development", "reported", "sealed", "all")


def half(samples: Sequence[Sample], name: Half) -> list[Sample]:
    """The questions of one half, in their order; "all" is both, as is "sealed" of a suite that was just drawn."""
    if name in ("sealed", "all"):
        return list(samples)
    numbers: dict[object, int] = {}
    for sample in samples:
        numbers.setdefault(_picture(sample), len(numbers))
    parity = int(name == "reported")
    return [sample for sample in samples if numbers[_picture(sample)] % 2 == parity]


def _picture(sample: Sample) -> object:
    # A picture in memory is the same picture only if it is the same object.
    return sample.image if hasattr(sample.image, "parts") else id(sample.image)


def as_half(name: str) -> Half:
    """The half of that name; QuotaError with the known names if there is none."""
    for known in HALVES:
        if known == name:
            return known
    raise QuotaError(f"a suite has no half {name!r}; choose one of {', '.join(HALVES)}")
