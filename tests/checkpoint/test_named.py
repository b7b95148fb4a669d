"""Names of models, and what is said of one that cannot be loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from quota.checkpoint import named
from quota.checkpoint.named import load_model
from quota.compress_folder import compress_folder
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


@pytest.mark.parametrize(
    ("said", "package"),
    [
        pytest.param(
            "Package `num2words` is required to run SmolVLM processor. Install it with `pip install num2words`.",
            "`num2words` is required",
            id="num2words",
        ),
        pytest.param(
            "\nA processor requires the Torchvision library but it was not found in your environment. Check out the\n"
            "installation page\n",
            "requires the Torchvision library",
            id="torchvision",
        ),
    ],
)
def test_a_package_that_a_processor_misses_is_named(
    said: str, package: str, full_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*arguments: object) -> None:
        raise ImportError(said)

    monkeypatch.setattr("transformers.AutoProcessor.from_pretrained", missing)
    for use in (lambda: load_model(str(full_folder)), lambda: compress_folder(full_folder, tmp_path / "out", [])):
        with pytest.raises(QuotaError, match=rf"cannot load .*{package}.*; install it$"):
            use()


class HubError(OSError):
    """As the hub's library raises them."""


HubError.__module__ = "huggingface_hub.errors"


def wrapped() -> OSError:
    """What transformers raises where the hub does not answer."""
    error = OSError("We couldn't connect to the hub")
    error.__cause__ = HubError("cannot reach it")
    return error


@pytest.mark.parametrize("error", [HubError("404"), wrapped(), TimeoutError("too slow")], ids=lambda each: str(each))
def test_what_cannot_be_fetched_is_no_damaged_file(
    error: Exception, full_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(named, "snapshot_download", missing)
    monkeypatch.setattr("transformers.AutoModelForImageTextToText.from_pretrained", missing)
    for use in (named.model_folder, load_model):
        with pytest.raises(QuotaError, match=r"^cannot load nosuch/model: .*; check the name and the network$"):
            use("nosuch/model")
    with pytest.raises(QuotaError, match=r"; copy it again, or save it anew$"):
        load_model(str(full_folder))


def test_a_wrong_file_of_a_hub_id_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(QuotaError, match=r"ValueError: odd; copy it again"), named.in_one_line("nosuch/model"):
        raise ValueError("odd")


def test_a_token_id_that_no_vocabulary_has_is_refused(full_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(full_folder, source)
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    word = next(word for word in tokenizer["model"]["vocab"] if not word.startswith("<"))
    tokenizer["model"]["vocab"][word] = 2**32 - 1
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    for use in (lambda: load_model(str(source)), lambda: compress_folder(source, tmp_path / "out", [])):
        with pytest.raises(QuotaError, match="a token with the id 4294967295, which no vocabulary has"):
            use()
