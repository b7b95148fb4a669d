"""Where models are put, and what is refused there; on a machine with a GPU, a checkpoint made and asked on it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.commands import call

from quota.checkpoint.named import load_model
from quota.compress_folder import compress_folder
from quota.errors import QuotaError
from quota.evaluation.workers import evaluate_over
from quota.ops import device
from quota.ranks import Ranks
from quota.samples import Sample

SAMPLE = Sample("a.png", "What is it?", "a cat")


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were two."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_is_the_cpu_until_another_is_asked_for(gpus: None) -> None:
    assert device.chosen() == torch.device("cpu")
    with device.use("cuda:1"):
        assert device.chosen() == torch.device("cuda", 1)
        with device.use(None):
            assert device.chosen() == torch.device("cuda", 1)
        with device.use("cpu"):
            assert device.chosen() == torch.device("cpu")
    assert device.chosen() == torch.device("cpu")


def test_a_name_without_a_number_is_the_first(gpus: None) -> None:
    with device.use("cuda"):
        assert device.chosen() == torch.device("cuda", 0)


@pytest.mark.parametrize("name", ["cuda:2", "gpu", "", "meta"])
def test_what_is_not_there_is_refused(gpus: None, name: str) -> None:
    with pytest.raises(QuotaError, match="choose one of cpu, cuda:0, cuda:1, cuda"), device.use(name):
        pass


def test_a_command_says_it_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert call("eval", "small", "--device", "cuda") == 1
    assert capsys.readouterr().err == "quota: there is no device 'cuda' here; choose one of cpu\n"


def test_a_gpu_takes_more_at_once() -> None:
    assert device.at_once(8, torch.device("cpu")) == 8
    assert device.at_once(8, torch.device("cuda")) == 32


def test_workers_and_ranks_stay_on_the_processor(gpus: None, tmp_path: Path) -> None:
    with device.use("cuda"):
        with pytest.raises(QuotaError, match="leave them out"):
            evaluate_over("small", [SAMPLE], workers=2)
        with pytest.raises(QuotaError, match="start one process"):
            compress_folder(tmp_path, tmp_path / "out", [SAMPLE], ranks=Ranks(0, 2))


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_compress_and_ask_on_a_gpu(tmp_path: Path) -> None:
    assert call("compress", "reference", tmp_path / "small", "--samples", 16, "--device", "cuda") == 0
    assert call("eval", tmp_path / "small", "--limit", 5, "--device", "cuda") == 0
    with device.use("cuda"):
        model, _, _ = load_model(str(tmp_path / "small"))
    assert model.device.type == "cuda"
