"""What `quota inspect` reads from files, against the files' own contents."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from support.tiny_llava import make_model, make_samples, processor

import quota
from quota.errors import QuotaError
from quota.pruning.recipe import PruningRecipe
from quota.report.inspection import inspect_path
from quota.scheme import QuantizationScheme


def test_a_checkpoint(quota_folder: Path) -> None:
    found = inspect_path(quota_folder)
    recipe = PruningRecipe.load(quota_folder / "recipe.json")
    assert found.recipe == recipe
    assert found.scheme == QuantizationScheme()
    assert found.visual_tokens_per_layer == recipe.tokens_per_layer(16, 6)
    assert found.layer_average_keep == pytest.approx(sum(found.visual_tokens_per_layer) / (6 * 16))
    assert found.prefill_flops_ratio is not None and 0.3 < found.prefill_flops_ratio < 1

    tensors = load_file(quota_folder / "model.safetensors")
    packed = [name for name in tensors if name.endswith("weight_packed")]
    assert found.packed is not None
    assert found.packed.layers == len(packed)
    # Eight 4-bit weights an int32, four of the embedding, which is the head as well.
    words = {name: 4 if "embed_tokens" in name else 8 for name in packed}
    assert sum(count == 4 for count in words.values()) == 1
    assert found.packed.weights == sum(tensors[name].numel() * count for name, count in words.items())
    assert 0.5 + 2 / 64 <= found.packed.bytes_per_weight < 0.58
    assert found.figures()["bytes_per_weight"] == found.packed.bytes_per_weight


def test_tokens_dropped_before_the_first_layer_count(quota_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(quota_folder, tmp_path / "copy"))
    recipe = PruningRecipe.load(folder / "recipe.json")
    changed = recipe.model_dump() | {"layers": (-1,), "keep_ratios": (0.25,), "keep": 0.25, "sensitivities": ()}
    PruningRecipe(**changed).save(folder / "recipe.json")
    found = inspect_path(folder)
    assert found.visual_tokens_per_layer == [4] * 6
    assert found.layer_average_keep == 0.25
    assert found.prefill_flops_ratio is not None and found.prefill_flops_ratio < 0.25


def test_a_lone_recipe(quota_folder: Path) -> None:
    found = inspect_path(quota_folder / "recipe.json")
    assert found.recipe == PruningRecipe.load(quota_folder / "recipe.json")
    assert found.packed is None and found.layer_average_keep is None
    assert found.figures()["disk_bytes"] is None


def test_what_quota_did_not_write(full_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(QuotaError, match="not written by quota"):
        inspect_path(full_folder)
    for name in ("nosuch", "recipe.json"):
        with pytest.raises(QuotaError, match=rf"{name} does not exist; give a checkpoint or a recipe"):
            inspect_path(tmp_path / name)


def test_a_layer_may_lie_in_several_files(tmp_path: Path) -> None:
    model, tools = make_model(), processor()
    quota.compress(model, tools, make_samples(2), method="paper")
    quota.save_pretrained(model, tools, tmp_path / "whole")
    quota.save_pretrained(model, tools, tmp_path / "cut", max_shard_size=10500)
    assert len(list((tmp_path / "cut").glob("*.safetensors"))) > 10
    assert inspect_path(tmp_path / "cut").packed == inspect_path(tmp_path / "whole").packed
