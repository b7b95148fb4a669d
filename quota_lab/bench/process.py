"""The process whose memory is measured: `python -m quota_lab.bench.process MODEL VARIANT` prints its peak in bytes."""

from __future__ import annotations

import sys

from quota_lab.bench.e2e import Variant, generate_timed, pruning
from quota_lab.bench.memory import own_peak
from quota_lab.bench.models import subject

NEW_TOKENS = 8


def measure(name: str, variant: str) -> int:
    """Make one variant of the model called `name`, let it answer once, and return the peak of all of it in bytes."""
    made = subject(name, quantized=variant in ("quantized", "quota"))
    with pruning(Variant(variant, made, pruned=variant in ("pruned", "quota"))):
        generate_timed(made, NEW_TOKENS)
    return own_peak()


if __name__ == "__main__":
    print(measure(*sys.argv[1:]))
