from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from quota.bench.streaming import Width, bench_compress, write_random
from quota.weights import weight_files

NARROW = Width("narrow", 512, 1024, 8, 64, 128, 2, 2, 72, 12, words=2000)
LAYER = 2 * (4 * 512 * 512 + 3 * 512 * 1024)
"""Bytes of a decoder layer in bfloat16."""


def test_depth_does_not_count() -> None:
    """A process's peak wavers by a few megabytes; ten layers more would be fifty."""
    report = bench_compress([2, 12], samples=1, width=NARROW)
    shallow, deep = (row.value for row in report.rows)
    assert deep - shallow < 5 * LAYER
    assert report.rows[1].baseline_value == shallow


def test_random_checkpoint_is_written_module_by_module_and_loads(tmp_path: Path) -> None:
    write_random(NARROW, 2, tmp_path / "model")
    files = weight_files(tmp_path / "model")
    stored = {name for file in files for name in load_file(file)}
    assert len(files) > 20
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    assert model.dtype == torch.bfloat16
    assert len(stored) == len(dict(model.named_parameters()))
