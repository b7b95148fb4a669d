"""What tests of the plugin of vLLM share: engines, configurations, questions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quota.checkpoint.named import load_model
from quota.samples import Sample, read_samples
from quota_lab import reference
from quota_lab.bench.engine import Engine, prepare


class Beside(Engine):
    """An engine in float32 and, beside it, the same model as quota runs it."""

    def __init__(self, folder: Path, cache_bytes: int = 64 << 20, **options: Any) -> None:
        super().__init__(folder, cache_bytes, **{"dtype": "float32"} | options)
        self.model, _, _ = load_model(str(folder))


def suite(count: int) -> list[Sample]:
    """So many questions of the reference suite, of all tasks."""
    samples = read_samples(reference.suite_path())
    return samples[:: len(samples) // count][:count]


def configured(folder: Path, **options: Any) -> Any:
    """The configuration that an engine of these options would have."""
    prepare()
    from vllm import EngineArgs

    return EngineArgs(model=str(folder), max_model_len=256, **options).create_engine_config()
