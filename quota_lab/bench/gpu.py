"""The operators on a CUDA GPU, against torch in bfloat16, at the layer shapes of two published models.

    python -m quota_lab.bench.gpu --json docs/benchmarks/gpu.json > docs/benchmarks/gpu.md

    linear             W4A4, rotation and activation quantisation included, against torch's bfloat16 linear
    decode_attention   one query over the packed 4-bit cache, against torch's bfloat16 SDPA

Before anything is timed, the sums over groups must equal the reference's. A call is timed as part of a CUDA graph,
which leaves out what Python takes to launch it; a graph goes through copies of the weights that are together twice as
large as the GPU's cache. Both sides are replayed in turns, and medians are compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from quota.errors import QuotaError
from quota.files import write_atomically
from quota.ops.interface import LinearWeight
from quota.ops.reference import ReferenceBackend
from quota.ops.triton import TritonBackend
from quota_lab.bench.operators import copy_cache, dense_linear, packed_attention, packed_linear, random_weight
from quota_lab.bench.report import Report, Row

# Layer -> (N, K), output and input channels.
LAYERS = {
    "LLaVA-1.5-7B q k v o": (4096, 4096),
    "LLaVA-1.5-7B gate up": (11008, 4096),
    "LLaVA-1.5-7B down": (4096, 11008),
    "Qwen2.5-VL-7B q o": (3584, 3584),
    "Qwen2.5-VL-7B k v": (512, 3584),
    "Qwen2.5-VL-7B gate up": (18944, 3584),
    "Qwen2.5-VL-7B down": (3584, 18944),
}
TOKENS = (1, 16, 64, 256, 640, 2048)
# Model -> (query heads, key heads, channels of a head); tokens in the cache.
HEADS = {"LLaVA-1.5-7B": (32, 32, 128), "Qwen2.5-VL-7B": (28, 4, 128)}
CACHED = (256, 1024, 4096)

TURNS = 50
CACHE_SHARE = 2
REFERENCE = ReferenceBackend()

Call = Callable[[int], Any]


def main() -> int:
    parser = argparse.ArgumentParser(description="Time the operators on a CUDA GPU against torch in bfloat16.")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    file = parser.parse_args().json
    backend = TritonBackend()
    if reason := backend.why_not():
        print(f"the triton backend cannot run here: {reason}; run this on a machine with a CUDA GPU", file=sys.stderr)
        return 1
    try:
        report = measure(backend, torch.device("cuda"), graph_seconds)
    except QuotaError as error:
        print(error, file=sys.stderr)
        return 1
    print(table(report))
    if file is not None:
        write_atomically(file, json.dumps(report.figures(), indent=2) + "\n")
    return 0


def measure(backend: Any, device: torch.device, seconds: Callable[[Sequence[Call], int], list[float]]) -> Report:
    """All rows; `seconds` times calls as `graph_seconds` does."""
    report = Report(device=torch.cuda.get_device_name() if device.type == "cuda" else device.type)
    with torch.inference_mode(), torch.device(device):
        for layer, (n, k) in LAYERS.items():
            weight = random_weight(n, k)
            check(backend, weight)
            for m in TOKENS:
                report.rows.append(linear_row(backend, layer, weight, m, seconds))
        for model, heads in HEADS.items():
            report.rows += [decode_row(backend, model, *heads, tokens, seconds) for tokens in CACHED]
    return report


def check(backend: Any, weight: LinearWeight) -> None:
    """QuotaError unless the sums are the reference's, for one token and for several."""
    for tokens in (1, 17):
        values, _ = REFERENCE.quantize(torch.randn(tokens, weight.spec.columns), weight.spec.inputs)
        if not torch.equal(backend.sums(values, weight), REFERENCE.sums(values, weight)):
            raise QuotaError(f"backend {backend.name!r} gives wrong sums for {weight.spec}; please report it")


def linear_row(backend: Any, layer: str, weight: LinearWeight, m: int, seconds: Any) -> Row:
    """x [M, K] times one layer."""
    n, k = weight.spec.rows, weight.spec.columns
    x, dense = torch.randn(m, k, dtype=torch.bfloat16), torch.randn(n, k, dtype=torch.bfloat16)
    copies = count(weight.packed.nbytes)
    denses = [dense.clone() for _ in range(count(dense.nbytes))]
    packeds = [replace(weight, packed=weight.packed.clone(), prepared={}) for _ in range(copies)]
    calls = partial(dense_linear, x, denses), partial(packed_linear, backend, x, packeds)
    baseline, value = seconds(calls, copies)
    return Row("linear", f"{layer} M={m} N={n} K={k}", backend.name, value, "torch bf16", baseline)


def decode_row(backend: Any, model: str, heads: int, groups: int, width: int, tokens: int, seconds: Any) -> Row:
    """One query a head over a cache of `tokens`."""
    query = torch.randn(1, heads, 1, width, dtype=torch.bfloat16)
    keys, values = (torch.randn(1, groups, tokens, width, dtype=torch.bfloat16) for _ in range(2))
    stored = backend.quantize_kv(keys, 4, 64), backend.quantize_kv(values, 4, 0)
    copies = count(2 * stored[0].packed.nbytes)
    denses = [(keys.clone(), values.clone()) for _ in range(count(2 * keys.nbytes))]
    packeds = [tuple(map(copy_cache, stored)) for _ in range(copies)]
    calls = partial(_dense_attention, query, denses), partial(packed_attention, backend, query, packeds)
    baseline, value = seconds(calls, copies)
    shape = f"{model} H={heads} G={groups} D={width} T={tokens}"
    return Row("decode_attention", shape, backend.name, value, "torch bf16 SDPA", baseline)


def graph_seconds(calls: Sequence[Call], copies: int) -> list[float]:
    """Median seconds of each call on the GPU; a graph holds `copies` of it, numbered in order."""
    graphs = []
    for call in calls:
        # Kernels are compiled at their first call, which a graph cannot hold.
        call(0)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for turn in range(copies):
                call(turn)
        graphs.append(graph)
    taken: list[list[float]] = [[] for _ in graphs]
    for turn in range(TURNS + 2):
        for graph, times in zip(graphs, taken, strict=True):
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            began.record()
            graph.replay()
            ended.record()
            ended.synchronize()
            if turn > 1:
                times.append(began.elapsed_time(ended) / 1e3 / copies)
    return [statistics.median(times) for times in taken]


def count(nbytes: int) -> int:
    """Copies of so many bytes that do not fit the GPU's cache together, and at least ten, for the clock's sake."""
    cache = torch.cuda.get_device_properties().L2_cache_size if torch.cuda.is_available() else 0
    return max(10, 1 + CACHE_SHARE * cache // nbytes)


def table(report: Report) -> str:
    """Markdown, a line a row."""
    lines = [
        f"{report.device}, torch {torch.__version__}. Made by `python -m quota_lab.bench.gpu`.",
        "",
        "| job | shape | bfloat16, us | W4A4KV4, us | ratio |",
        "|---|---|---|---|---|",
    ]
    for row in report.rows:
        times = f"{row.baseline_value * 1e6:.1f} | {row.value * 1e6:.1f} | {row.ratio:.2f}"
        lines.append(f"| {row.job} | {row.shape} | {times} |")
    return "\n".join(lines)


def _dense_attention(query: Tensor, cache: list[tuple[Tensor, Tensor]], turn: int) -> Tensor:
    keys, values = cache[turn % len(cache)]
    return functional.scaled_dot_product_attention(query, keys, values, enable_gqa=True)


if __name__ == "__main__":
    sys.exit(main())
