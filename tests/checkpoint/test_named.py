"""Names of models, and what is said of one that cannot be loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from quota.checkpoint.named import load_model
from quota.errors import QuotaError
from quota.pruning.pruner import is_pruned


def test_a_folder(full_folder: Path, full_model) -> None:
    model, processor, label = load_model(str(full_folder))
    assert label == "full"
    assert not model.training and not is_pruned(model)
    assert torch.equal(model.lm_head.weight, full_model.lm_head.weight)
    assert processor.chat_template


def test_a_compressed_folder_prunes(quota_folder: Path) -> None:
    model, _, label = load_model(str(quota_folder))
    assert label == "compressed" and is_pruned(model)


@pytest.mark.parametrize("name", ["nothing", "./nothing", "/nothing", "a/b/c"])
def test_a_folder_that_is_not_there(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(QuotaError, match="no model folder"):
        load_model(name)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(QuotaError, match=r"no config\.json"):
        load_model(str(tmp_path))


def test_a_model_of_another_kind(full_folder: Path, tmp_path: Path) -> None:
    """A language model without eyes: transformers' long explanation becomes one line."""
    folder = tmp_path / "blind"
    shutil.copytree(full_folder, folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(QuotaError, match="cannot load") as raised:
        load_model(str(folder))
    assert "\n" not in str(raised.value)
