"""Every family compressed block by block from its folder: what compression in memory makes, and after a kill too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.families import TINY
from support.families.family import IMAGE, PAD, VIDEO, TinyFamily
from support.families.processor import SAMPLES, HandWritten
from support.stopped import kill
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText
from transformers.utils import SAFE_WEIGHTS_NAME

import quota
from quota import QuantizationScheme
from quota import compress_folder as streaming
from quota.checkpoint import named
from quota.checkpoint.on_disk import OnDisk
from quota.compress_folder import compress_folder, finished_blocks
from quota.models import family

pytestmark = pytest.mark.slow

families = pytest.mark.parametrize("name", TINY)


def save(tiny: TinyFamily, folder: Path, tied: bool) -> None:
    """A checkpoint with the keys of published ones, in which a part of a CLIP or SigLIP tower is `vision_model`."""
    model = tiny.build(tied=tied)
    model.save_pretrained(folder)
    assert tied == (model.lm_head.weight is model.get_input_embeddings().weight)
    if type(getattr(model.model, "vision_tower", None)).__name__ in ("CLIPVisionModel", "SiglipVisionModel"):
        stored = load_file(folder / SAFE_WEIGHTS_NAME)
        published = {key.replace("vision_tower.", "vision_tower.vision_model."): stored[key] for key in stored}
        assert published.keys() != stored.keys()
        save_file(published, folder / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})


class Counting(OnDisk):
    """How many decoder layers were in memory whenever a block was finished."""

    most: int = 0

    def keep(self, block: nn.Module) -> None:
        layers = family(self.model).decoder_layers
        Counting.most = max(Counting.most, sum(not next(layer.parameters()).is_meta for layer in layers))
        super().keep(block)


def tensors(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def answer(model: Any, tiny: TinyFamily) -> tuple[Tensor, ...]:
    small, large = tiny.sizes
    batch = tiny.batch([tiny.prompt([small, large], 5, seed=1), tiny.prompt([large], 3, seed=2)])
    said = model.generate(
        **batch,
        max_new_tokens=3,
        do_sample=False,
        suppress_tokens=[IMAGE, VIDEO, PAD],
        return_dict_in_generate=True,
        output_logits=True,
    )
    return said.sequences, *said.logits


@pytest.mark.parametrize(
    ("scheme", "method", "tied"),
    [
        pytest.param(QuantizationScheme(), "quota", True, id="default, tied embeddings"),
        pytest.param(
            QuantizationScheme(transforms="learned", weight_rounding="rtn"), "paper", False, id="learned transforms"
        ),
    ],
)
@families
def test_streamed_is_what_compression_in_memory_saves(
    name: str, scheme: QuantizationScheme, method: Any, tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = TINY[name]
    source, memory, streamed = tmp_path / "source", tmp_path / "memory", tmp_path / "streamed"
    save(tiny, source, tied)
    monkeypatch.setattr(named, "AutoProcessor", HandWritten(tiny))
    monkeypatch.setattr(streaming, "OnDisk", Counting)
    monkeypatch.setattr(Counting, "most", 0)
    result = compress_folder(source, streamed, SAMPLES, scheme=scheme, method=method)
    assert Counting.most == 1

    model = AutoModelForImageTextToText.from_pretrained(source)
    expected = quota.compress(model, HandWritten(tiny), SAMPLES, scheme=scheme, method=method)
    quota.save_pretrained(model, HandWritten(tiny), memory)
    assert (result.recipe, result.curves) == (expected.recipe, expected.curves)
    assert result.quantized == expected.quantized == len(family(tiny.build()).linears())
    written, saved = tensors(streamed), tensors(memory)
    assert written.keys() == saved.keys()
    assert all(torch.equal(written[key], saved[key]) for key in saved)
    configs = [json.loads((folder / "config.json").read_text()) for folder in (streamed, memory)]
    assert configs[0] == configs[1]

    loaded = AutoModelForImageTextToText.from_pretrained(streamed)
    assert all(torch.equal(one, two) for one, two in zip(answer(loaded, tiny), answer(model, tiny), strict=True))


def test_a_killed_run_goes_on_between_the_mergers_of_deepstack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "Qwen3VLForConditionalGeneration"
    tiny = TINY[name]
    source, whole, out = tmp_path / "source", tmp_path / "whole" / "out", tmp_path / "again" / "out"
    save(tiny, source, tied=False)
    # Three blocks of the tower, and two of its four mergers.
    kill(source, out, "write 6", name)
    assert finished_blocks(out) == 5
    monkeypatch.setattr(named, "AutoProcessor", HandWritten(tiny))
    for folder in (out, whole):
        compress_folder(source, folder, SAMPLES)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == {
        file.name: file.read_bytes() for file in whole.iterdir()
    }
