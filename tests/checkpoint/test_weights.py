"""Single tensors of a checkpoint by the names that the model has for them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_llava import make_model
from transformers import LlavaForConditionalGeneration

from quota.checkpoint.weights import Weights, weight_files
from quota.errors import QuotaError


@pytest.fixture
def folder(full_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(full_folder, tmp_path / "copy"))


@pytest.fixture(scope="module")
def model() -> LlavaForConditionalGeneration:
    return make_model()


def test_every_tensor_is_found_by_its_name_and_read_as_stored(
    folder: Path, model: LlavaForConditionalGeneration
) -> None:
    weights, state = Weights(folder, model), model.state_dict()
    read = weights.read(weights.places)
    assert set(read) >= set(state) - set(model.all_tied_weights_keys)
    assert not [name for name, tensor in read.items() if not torch.equal(tensor, state[name])]
    assert weights.dtype() == torch.float32


def test_files_may_call_tensors_otherwise_than_the_model_does(
    folder: Path, model: LlavaForConditionalGeneration
) -> None:
    stored = load_file(folder / "model.safetensors")
    weights = Weights(folder, model)
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    assert weights.key(name) in stored
    # What is to stand in place of a tensor is called as its neighbours are.
    packed = weights.key(name.removesuffix("weight") + "weight_packed")
    assert packed == weights.key(name).removesuffix("weight") + "weight_packed"


def test_what_is_read_outlives_the_file(folder: Path, model: LlavaForConditionalGeneration) -> None:
    weights = Weights(folder, model)
    name = next(iter(weights.places))
    tensor = weights.read([name])[name]
    before = tensor.clone()
    (folder / "model.safetensors").write_bytes(b"")
    assert torch.equal(tensor, before)


def test_a_missing_tensor_is_named(folder: Path, model: LlavaForConditionalGeneration) -> None:
    file = folder / "model.safetensors"
    stored = load_file(file)
    lost = next(key for key in stored if "layernorm" in key)
    save_file({key: tensor for key, tensor in stored.items() if key != lost}, file, {"format": "pt"})
    with pytest.raises(QuotaError, match=r"lacks the weight .*layernorm"):
        Weights(folder, model)


def test_a_file_that_is_not_whole_is_named(folder: Path, model: LlavaForConditionalGeneration) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(QuotaError, match=r"model\.safetensors is not whole"):
        Weights(folder, model)


def test_shards_are_those_of_the_index(folder: Path) -> None:
    index = {"weight_map": {"a": "two.safetensors", "b": "one.safetensors", "c": "two.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    assert weight_files(folder) == [folder / "one.safetensors", folder / "two.safetensors"]


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(QuotaError, match="no safetensors files"):
        weight_files(tmp_path)


def test_an_index_beside_a_whole_file_is_of_an_earlier_save(folder: Path) -> None:
    """As transformers takes it."""
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')
    assert weight_files(folder) == [folder / "model.safetensors"]
