"""`quota bench e2e`: whole models, against the same architecture in bfloat16 as transformers runs it.

    dense       bfloat16, every visual token            the baseline
    quantized   W4A4KV4, every visual token
    pruned      bfloat16, visual tokens dropped by the recipe
    quota       both

Time to first token and the tokens a second after it come from one greedy `generate` a turn, batch 1, all variants
taking turns; what parts of it take is measured apart (quota_lab/bench/profile.py). Peak memory is that of a process
of its own for each variant (quota_lab/bench/memory.py), and what pruning itself costs is measured inside QUOTA's
prefill (quota_lab/bench/overhead.py).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from quota import ops
from quota.progress import Steps, silent
from quota.pruning.pruner import Pruner
from quota_lab.bench.busy import Others
from quota_lab.bench.memory import peak_bytes
from quota_lab.bench.models import NAMES, Subject, subject
from quota_lab.bench.overhead import overhead
from quota_lab.bench.profile import profile
from quota_lab.bench.report import Job, Report, Row

BASELINE = "bf16 dense transformers"
NEW_TOKENS = 24
TURNS = 5


@dataclass
class Variant:
    """One way to run a model, and what was measured of it."""

    name: str
    subject: Subject
    pruned: bool
    first: list[float] = field(default_factory=list)
    """Seconds to the first token."""
    rate: list[float] = field(default_factory=list)
    """Tokens a second after it."""
    operators: ops.Usage = field(default_factory=ops.Usage)


def bench_e2e(
    names: Sequence[str] = NAMES, new_tokens: int = NEW_TOKENS, turns: int = TURNS, progress: Steps = silent
) -> Report:
    """Measure each of the models (of `quota_lab.bench.models.NAMES`) in all variants.

    Needs the memory of the dense and of the quantised model at once, and minutes for the realistic one.
    """
    report, others = Report(), Others()
    for name in names:
        variants = _variants(subject(name, quantized=False), subject(name, quantized=True))
        time_variants(variants, new_tokens, turns, progress)
        report.rows += _speed_rows(name, variants)
        report.rows.append(overhead_row(name, variants[-1], turns))
        report.rows += part_rows(name, variants, turns)
        names_of_variants = [variant.name for variant in variants]
        operators = {variant.name: str(variant.operators) for variant in variants}
        # The processes to come need the room.
        del variants
        report.rows += _memory_rows(name, names_of_variants, operators, progress)
    report.others = others.share()
    return report


def _variants(dense: Subject, quantized: Subject) -> list[Variant]:
    return [
        Variant("dense", dense, pruned=False),
        Variant("quantized", quantized, pruned=False),
        Variant("pruned", dense, pruned=True),
        Variant("quota", quantized, pruned=True),
    ]


def time_variants(variants: Sequence[Variant], new_tokens: int, turns: int, progress: Steps = silent) -> None:
    """Fill in `first`, `rate` and `operators`: `turns` turns, after one that does not count."""
    for turn in range(turns + 1):
        for variant in variants:
            with pruning(variant), ops.record(variant.operators):
                first, rate = generate_timed(variant.subject, new_tokens)
            if turn:
                variant.first.append(first)
                variant.rate.append(rate)
        progress(f"{variants[0].subject.name}: generating", turn, turns)


@contextmanager
def pruning(variant: Variant) -> Iterator[None]:
    """The variant's Pruner, if it has one, for as long as the block runs."""
    if not variant.pruned:
        yield
        return
    recipe = variant.subject.recipe
    with Pruner(variant.subject.model, recipe, recipe.scheme):
        yield


def generate_timed(subject: Subject, new_tokens: int) -> tuple[float, float]:
    """(seconds to the first token, tokens a second after it) of one greedy `generate`."""
    watch = _Stopwatch()
    began = time.perf_counter()
    with torch.inference_mode():
        subject.model.generate(**subject.inputs, max_new_tokens=new_tokens, do_sample=False, streamer=watch)
    # The first thing that a streamer gets is the prompt.
    times = watch.times[1:]
    return times[0] - began, (len(times) - 1) / (times[-1] - times[0])


class _Stopwatch:
    """Takes the place of a streamer and notes when tokens come."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing to finish."""


def _speed_rows(name: str, variants: Sequence[Variant]) -> list[Row]:
    dense, *others = variants
    rows = []
    jobs: dict[Job, str] = {"ttft": "first", "decode": "rate"}
    for job, figure in jobs.items():
        baseline = statistics.median(getattr(dense, figure))
        for variant in others:
            value = statistics.median(getattr(variant, figure))
            rows.append(Row(job, shape(name, variant.name), str(variant.operators), value, BASELINE, baseline))
    return rows


def overhead_row(name: str, variant: Variant, turns: int) -> Row:
    """Scoring, gathering and compaction in the prefill of the variant "quota", against that prefill."""
    with ops.record() as operators:
        seconds, prefill = overhead(variant.subject, turns)
    return Row("overhead", shape(name, variant.name), str(operators), seconds, "QUOTA's prefill", prefill)


def part_rows(name: str, variants: Sequence[Variant], turns: int) -> list[Row]:
    """For each quantised variant the seconds of every part of a prefill and of a step, beside the dense model's."""
    dense, *others = [variant for variant in variants if variant.name != "pruned"]
    baseline = profile(dense.subject, dense.pruned, turns)
    rows = []
    for variant in others:
        for job, parts in profile(variant.subject, variant.pruned, turns).items():
            before = baseline[job]
            for part in sorted(parts.keys() | before.keys()):
                label, values = f"{shape(name, variant.name)}: {part}", (parts.get(part, 0.0), before.get(part, 0.0))
                rows.append(Row(job, label, str(variant.operators), values[0], BASELINE, values[1]))
    return rows


def _memory_rows(name: str, variants: Sequence[str], operators: dict[str, str], progress: Steps) -> list[Row]:
    peaks = []
    for done, variant in enumerate(variants, 1):
        peaks.append(peak_bytes(name, variant))
        progress(f"{name}: peak memory", done, len(variants))
    return [
        Row("memory", shape(name, variant), operators[variant], peak, BASELINE, peaks[0])
        for variant, peak in zip(variants[1:], peaks[1:], strict=True)
    ]


def shape(name: str, variant: str) -> str:
    """How rows name a model and a variant."""
    return f"{name} {variant}, keep 30%" if variant in ("pruned", "quota") else f"{name} {variant}"
