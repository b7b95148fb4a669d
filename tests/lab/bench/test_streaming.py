from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from quota.checkpoint.weights import weight_files
from quota_lab.bench.models import realistic_config
from quota_lab.bench.streaming import REALISTIC, Width, bench_compress, llava_config, write_random

pytestmark = pytest.mark.slow

NARROW = Width("narrow", 512, 1024, 8, 64, 128, 2, 2, 72, 12, words=2000)
LAYER = 2 * (4 * 512 * 512 + 3 * 512 * 1024)
"""Bytes of a decoder layer in bfloat16."""


def test_depth_does_not_count() -> None:
    """A process's peak wavers by some tens of megabytes; twenty layers more would be a hundred."""
    report = bench_compress([2, 22], samples=1, width=NARROW)
    shallow, deep = (row.value for row in report.rows if row.baseline == "2 layers")
    assert deep - shallow < 10 * LAYER
    assert report.rows[2].baseline_value == shallow
    few, many = (row for row in report.rows if row.baseline == "bf16 weights")
    assert many.baseline_value - few.baseline_value == pytest.approx(20 * LAYER, rel=0.01)
    assert (few.value, many.value) == (shallow, deep)
    assert all(row.shape.endswith("1 samples") for row in report.rows)


def test_random_checkpoint_is_written_module_by_module_and_loads(tmp_path: Path) -> None:
    write_random(NARROW, 2, tmp_path / "model")
    files = weight_files(tmp_path / "model")
    stored = {name for file in files for name in load_file(file)}
    assert len(files) > 20
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    assert model.dtype == torch.bfloat16
    assert len(stored) == len(dict(model.named_parameters()))


def test_the_realistic_width_is_that_of_the_timed_model() -> None:
    ours, timed = llava_config(REALISTIC, 16), realistic_config()
    for part in ("vision_config", "text_config"):
        sizes, others = (getattr(config, part).to_dict() for config in (ours, timed))
        assert sizes == others
