"""`quota bench vllm`: a checkpoint of ours in vLLM, beside itself as `quota run` has it, and beside the original model.

equal       answers of a suite that are the same, word by word
kept        tokens that both keep, of those that quota keeps
bytes       of the cache for one prompt: by vLLM's blocks, and as `quota inspect` counts
at once     requests that a cache of a fixed size holds, against the original model in bfloat16
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from quota.evaluation import evaluate
from quota.evaluation.footprint import footprint
from quota.ops import machine
from quota.progress import Steps, silent
from quota.prompts import build_inputs
from quota.pruning.pruner import is_pruned, record
from quota.samples import Sample
from quota_lab.bench.engine import Engine

CACHE = 64 << 20
SMALL_CACHE = 8 << 20
"""To count the requests that fit."""
_ASKED = 64
_STEPS = 8
"""Until no more come in: a step takes as many prompts as it has tokens for."""
_LONG = 24


@dataclass(frozen=True)
class Served:
    """What was found."""

    questions: int
    equal: int
    kept: float | None
    """None without cuts."""
    bytes_in_vllm: int
    bytes_in_quota: int
    at_once: int
    at_once_dense: int
    device: str

    def figures(self) -> dict[str, Any]:
        """What `--json` writes."""
        return asdict(self)


def bench_vllm(folder: Path, original: Path, samples: Sequence[Sample], progress: Steps = silent) -> Served:
    """The checkpoint in `folder` on questions, in float32 where answers are compared."""
    exact = Engine(folder, CACHE, dtype="float32")
    own: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    equal, kept = _compare(exact, own, samples, progress)
    in_vllm, in_quota = _bytes(exact, own, samples[0])
    del exact, own
    ours = _at_once(folder, samples, progress, "ours")
    # Blocks of 32 tokens are the smallest that vLLM's own kernels are made for.
    dense = _at_once(original, samples, progress, "dense", block_size=32)
    return Served(len(samples), equal, kept, in_vllm, in_quota, ours, dense, machine.processor())


def _compare(engine: Engine, model: Any, samples: Sequence[Sample], progress: Steps) -> tuple[int, float | None]:
    """Answers that are equal, and the share of kept tokens that are."""
    with engine.served.record() as traces:
        answers = engine.texts(engine.generate(engine.prompts(samples)))
    # The engine adds something to the numbers of requests.
    ordered = [trace for _, trace in sorted(traces.items(), key=lambda item: int(item[0].split("-")[0]))]
    processor = engine.processor
    own = evaluate(model, processor, samples, progress=lambda done, all: progress("answers", done, all)).answers
    equal = sum(one == other for one, other in zip(answers, own, strict=True))
    if not is_pruned(model):
        return equal, None
    same = total = 0
    for number, (sample, trace) in enumerate(zip(samples, ordered, strict=True), 1):
        inputs = build_inputs(processor, [sample])
        with torch.inference_mode(), record(model) as ours:
            model(**inputs, logits_to_keep=1)
        for layer, chosen in ours.kept.items():
            same += len(set(chosen[0].tolist()) & set(trace.kept[layer][0].tolist()))
            total += chosen.shape[1]
        progress("kept", number, len(samples))
    return equal, same / total


def _bytes(engine: Engine, model: Any, sample: Sample) -> tuple[int, int]:
    """Of the cache of one prompt, by vLLM's blocks and by quota's count."""
    names = engine.begin([sample], _LONG)
    engine.step()
    used = engine.bytes_in_use
    engine.give_up(names)
    return used, footprint(model, engine.processor, sample).kv_bytes


def _at_once(folder: Path, samples: Sequence[Sample], progress: Steps, name: str, **options: Any) -> int:
    """Requests that a small cache holds."""
    engine = Engine(folder, SMALL_CACHE, dtype="bfloat16", max_num_seqs=_ASKED, enforce_eager=True, **options)
    names = engine.begin([samples[number % len(samples)] for number in range(_ASKED)], _LONG)
    most = 0
    for done in range(_STEPS):
        engine.step()
        most = max(most, len(engine.scheduler.running))
        progress(f"{name}, at once", done + 1, _STEPS)
    engine.give_up(names)
    return most
