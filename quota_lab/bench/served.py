"""`quota bench vllm`: a checkpoint of ours in vLLM, beside itself as `quota run` has it.

equal       answers of a suite that are the same, word by word
kept        tokens that both keep, of those that quota keeps
bytes       of the cache for one prompt: by vLLM's blocks, and as `quota inspect` counts
at once     requests that a cache of a fixed size holds, and how many of 16 bits with all tokens it would hold
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
_ASKED, _BLOCK = 64, 32
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


def bench_vllm(folder: Path, samples: Sequence[Sample], progress: Steps = silent) -> Served:
    """The checkpoint in `folder` on questions, in float32 where answers are compared."""
    exact = Engine(folder, CACHE, dtype="float32")
    own: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    equal, kept = _compare(exact, own, samples, progress)
    in_vllm, in_quota = _bytes(exact, own, samples[0])
    del exact, own
    ours, dense = _at_once(folder, samples, progress)
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


def _at_once(folder: Path, samples: Sequence[Sample], progress: Steps) -> tuple[int, int]:
    """Requests that a small cache holds, and how many it would hold in vLLM's own cache of 16 bits.

    Of those blocks of 32 tokens are counted, the smallest that vLLM's kernels for CPUs are made for.
    """
    engine = Engine(folder, SMALL_CACHE, dtype="bfloat16", max_num_seqs=_ASKED)
    names = engine.begin([samples[number % len(samples)] for number in range(_ASKED)], _LONG)
    most = longest = 0
    for done in range(_STEPS):
        engine.step()
        running = engine.scheduler.running
        most, longest = max(most, len(running)), max([longest, *(request.num_prompt_tokens for request in running)])
        progress("at once", done + 1, _STEPS)
    engine.give_up(names)
    layers = engine.served.family.decoder_layers
    spec = engine.scheduler.kv_cache_manager.kv_cache_config.kv_cache_groups[0].kv_cache_spec
    slots = -(-(longest + 1) // _BLOCK) * _BLOCK
    dense = slots * len(layers) * 2 * spec.num_kv_heads * spec.head_size * 2
    return most, SMALL_CACHE // dense
