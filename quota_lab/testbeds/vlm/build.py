"""Put the testbed together: the parts, and what was trained of it, in one stock checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch

from quota.files import staged_folder
from quota_lab.testbeds.vlm import weights
from quota_lab.testbeds.vlm.architecture import build_processor
from quota_lab.testbeds.vlm.card import card
from quota_lab.testbeds.vlm.parts import load_parts


def build(out: Path, adapter: Path = weights.FILE, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write the checkpoint to the folder `out`. QuotaError for missing parts and for a folder of something else."""
    tensors = weights.read(adapter)
    model, tokenizer = load_parts()
    weights.apply(model, tensors)
    with staged_folder(out) as stage:
        model.to(dtype).save_pretrained(stage)
        build_processor(tokenizer).save_pretrained(stage)
        (stage / "README.md").write_text(card(), encoding="utf-8")
