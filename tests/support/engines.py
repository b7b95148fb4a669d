"""What tests of the plugin of vLLM share: engines, configurations, questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import quota
from quota.checkpoint.named import load_model
from quota.prompts import MAX_NEW_TOKENS, build_inputs, generate
from quota.pruning.trace import Trace
from quota.samples import Sample, read_samples
from quota_lab import reference
from quota_lab.bench.engine import Engine, prepare


class Beside(Engine):
    """An engine in float32 and, beside it, the same model as quota runs it."""

    def __init__(self, folder: Path, cache_bytes: int = 64 << 20, **options: Any) -> None:
        super().__init__(folder, cache_bytes, **{"dtype": "float32"} | options)
        self.model, _, _ = load_model(str(folder))

    def alone(self, sample: Sample, new_tokens: int = MAX_NEW_TOKENS) -> list[int]:
        """Tokens of the answer that quota gives, to the end mark."""
        inputs = build_inputs(self.processor, [sample])
        tokens = generate(self.model, self.processor, inputs, new_tokens)[0].tolist()
        end = self.processor.tokenizer.eos_token_id
        return tokens[: tokens.index(end) + 1] if end in tokens else tokens

    def check_tokens_and_places(self, samples: Sequence[Sample], new_tokens: int) -> None:
        """What vLLM answers to all at once, and what it keeps, is what quota does with each alone."""
        with self.served.record() as traces:
            found = self.generate(self.prompts(samples), new_tokens, ignore_eos=True)
        for sample, tokens, trace in zip(samples, found, in_order(traces), strict=True):
            with quota.record(self.model) as own:
                alone = self.alone(sample, new_tokens)
            assert trace.tokens_per_layer == own.tokens_per_layer
            assert {layer: kept.tolist() for layer, kept in trace.kept.items()} == {
                layer: kept.tolist() for layer, kept in own.kept.items()
            }
            assert tokens[: len(alone)] == alone


def in_order(traces: Mapping[str, Trace]) -> list[Trace]:
    """As requests were asked: the engine adds something to their numbers."""
    return [trace for _, trace in sorted(traces.items(), key=lambda item: int(item[0].split("-")[0]))]


def noise(count: int) -> list[Sample]:
    """Questions to a tiny model about noise of several sizes."""

    def picture(seed: int) -> Image.Image:
        height, width = 200 + 40 * (seed % 3), 300 - 50 * (seed % 2)
        pixels = np.random.default_rng(seed).integers(90, 160, (height, width, 3), dtype=np.uint8)
        return Image.fromarray(pixels, "RGB")

    return [
        Sample(picture(seed), " ".join(f"w{20 + seed + word}" for word in range(2 + seed % 3))) for seed in range(count)
    ]


def in_pairs(samples: Sequence[Sample]) -> list[Sample]:
    """The same with two pictures for every third, and questions said once to four times."""
    return [
        Sample(
            (sample.image, other.image) if number % 3 == 0 else sample.image,
            " ".join([sample.question] * (1 + number % 4)),
        )
        for number, (sample, other) in enumerate(zip(samples, reversed(samples), strict=True))
    ]


def suite(count: int) -> list[Sample]:
    """So many questions of the reference suite, of all tasks."""
    samples = read_samples(reference.suite_path())
    return samples[:: len(samples) // count][:count]


def configured(folder: Path, **options: Any) -> Any:
    """The configuration that an engine of these options would have."""
    prepare()
    from vllm import EngineArgs

    return EngineArgs(model=str(folder), max_model_len=256, **options).create_engine_config()
