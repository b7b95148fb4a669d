"""`quota bench threads`: decode tokens a second beside busy processes, ours and float32 transformers in turns.

A busy process counts for ever, and the machine's cores are shared out among all. What is left of a rate is then about
what its threads do while they wait: who spins pays with its own share.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from quota import ops
from quota.progress import Steps, silent
from quota_lab.bench.e2e import Variant, generate_timed
from quota_lab.bench.models import REFERENCE, subject
from quota_lab.bench.report import Report, Row

BASELINE = "fp32 dense transformers"
NEW_TOKENS = 24
TURNS = 5


def bench_threads(
    loads: Sequence[int] = (0, 1, 2, 4), new_tokens: int = NEW_TOKENS, turns: int = TURNS, progress: Steps = silent
) -> Report:
    """Rates of the bundled model beside so many busy processes: medians over `turns`."""
    variants = [
        Variant("quantized", subject(REFERENCE, quantized=True), pruned=False),
        Variant("dense", subject(REFERENCE, quantized=False), pruned=False),
    ]
    dense = variants[-1].subject
    dense.model.float()
    dense.inputs["pixel_values"] = dense.inputs["pixel_values"].to(torch.float32)
    report = Report()
    for done, load in enumerate(loads, 1):
        for variant in variants:
            variant.rate.clear()
            generate_timed(variant.subject, 2)
        with busy(load):
            for _ in range(turns):
                for variant in variants:
                    with ops.record(variant.operators):
                        variant.rate.append(generate_timed(variant.subject, new_tokens)[1])
        ours, theirs = (statistics.median(variant.rate) for variant in variants)
        shape = f"{REFERENCE} quantized, {load} busy processes"
        report.rows.append(Row("decode", shape, str(variants[0].operators), ours, BASELINE, theirs))
        progress("decoding beside busy processes", done, len(loads))
    return report


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that use a core each while the block runs."""
    processes: list[subprocess.Popen[bytes]] = []
    try:
        processes += (subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count))
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
