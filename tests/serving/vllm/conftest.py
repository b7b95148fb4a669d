"""An engine of vLLM on the reference model; `make test-vllm` runs what needs one, and it is skipped elsewhere."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from support.engines import Beside

import quota
from quota.checkpoint.named import load_model
from quota.checkpoint.save import mark
from quota.compress import quantize_only
from quota.models import fingerprint
from quota.pruning.pruner import Pruner
from quota.pruning.recipe import PruningRecipe
from quota_lab import reference
from quota_lab.reference import NAME as REFERENCE


@pytest.fixture(scope="module")
def engine(reference_folder: Path) -> Beside:
    """On the reference model at W4A4KV4, with cuts."""
    # An engine that is collected takes with it what vLLM has once in a process: first all earlier ones, then a new one.
    gc.collect()
    return Beside(reference_folder)


@pytest.fixture(scope="session")
def whole_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference model at W4A8KV4, without cuts, in bfloat16."""
    folder = tmp_path_factory.mktemp("models") / "whole"
    model, tools, _ = load_model(REFERENCE)
    model = model.to(torch.bfloat16)
    quantize_only(model, tools, reference.calibration_samples(4, seed=0), quota.QuantizationScheme(activation_bits=8))
    quota.save_pretrained(model, tools, folder)
    return folder


@pytest.fixture(scope="session")
def paper_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference model at W4A4KV4, with cuts by the published score, which asks attention."""
    folder = tmp_path_factory.mktemp("models") / "paper"
    model, tools, _ = load_model(REFERENCE)
    quantize_only(model, tools, reference.calibration_samples(4, seed=0))
    recipe = PruningRecipe(
        layers=(1, 3), keep_ratios=(0.6, 0.3), keep=0.3, reference_tokens=144, scheme=quota.QuantizationScheme(),
        model_fingerprint=fingerprint(model),
    )  # fmt: skip
    Pruner(model, recipe, recipe.scheme).attach()
    mark(model, recipe.scheme, recipe=True)
    quota.save_pretrained(model, tools, folder)
    return folder
