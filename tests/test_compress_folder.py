"""Compressing a folder block by block: the same result as in memory, at any interruption, in memory of one block."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.stopped import kill, start
from support.tiny_llava import make_model, make_samples, processor
from transformers import AutoModelForImageTextToText
from transformers.core_model_loading import Chunk, WeightConverter

import quota
from quota import QuantizationScheme, QuotaError, ops
from quota.calibration import blocks
from quota.calibration import sweep as calibration
from quota.checkpoint import weights
from quota.checkpoint.described import described
from quota.checkpoint.manifest import MANIFEST_FILE, read_manifest, verify
from quota.compress_folder import compress_folder, finished_blocks, working_folder
from quota.ops import machine

SAMPLES = make_samples(3)
BLOCKS = 9
"""Two of the tower, the projector, six decoder layers."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in several files, its processor, and generation settings of its own."""
    folder = tmp_path_factory.mktemp("streaming") / "source"
    model = make_model()
    model.generation_config.max_length = 77
    model.save_pretrained(folder, max_shard_size="100KB")
    processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an uninterrupted run writes."""
    out = tmp_path_factory.mktemp("streaming") / "whole"
    compress_folder(source, out, SAMPLES)
    return out


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize(
    ("scheme", "dtype"),
    [
        pytest.param(QuantizationScheme(), torch.float32, id="default"),
        pytest.param(QuantizationScheme(), torch.bfloat16, id="bfloat16"),
        pytest.param(QuantizationScheme(transforms="learned"), torch.float32, id="learned transforms"),
        pytest.param(QuantizationScheme(modules=("decoder",)), torch.float32, id="decoder only"),
        pytest.param(QuantizationScheme(weight_rounding="rtn", weight_bits=8), torch.float32, id="8 bits to nearest"),
    ],
)
def test_what_is_written_is_what_compression_in_memory_saves(
    scheme: QuantizationScheme, dtype: torch.dtype, source: Path, tmp_path: Path
) -> None:
    model = AutoModelForImageTextToText.from_pretrained(source, dtype=dtype)
    expected = quota.compress(model, processor(), SAMPLES, scheme=scheme)
    quota.save_pretrained(model, processor(), tmp_path / "memory")
    result = compress_folder(source, tmp_path / "streamed", SAMPLES, scheme=scheme, dtype=dtype)
    assert result.recipe == expected.recipe
    assert (result.quantized, result.curves) == (expected.quantized, expected.curves)
    streamed, saved = tensors(tmp_path / "streamed"), tensors(tmp_path / "memory")
    assert streamed.keys() == saved.keys()
    assert all(torch.equal(streamed[name], saved[name]) for name in saved)
    for name in ("recipe.json", "generation_config.json", "processor_config.json", "tokenizer.json"):
        assert (tmp_path / "streamed" / name).read_bytes() == (tmp_path / "memory" / name).read_bytes()
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("streamed", "memory")]
    assert configs[0] == configs[1]


@pytest.mark.parametrize("named", [None, ["LlavaLlamaForCausalLM"]], ids=["nothing", "another program's"])
def test_a_source_whose_architecture_is_named_otherwise(
    source: Path, whole: Path, tmp_path: Path, named: list[str] | None
) -> None:
    other = tmp_path / "other"
    shutil.copytree(source, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"architectures": named}))
    compress_folder(other, tmp_path / "out", SAMPLES)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == config["architectures"]
    found = described(tmp_path / "out")
    assert found.measurements is not None and found.measurements == described(whole).measurements


def test_it_loads_and_leaves_nothing_beside(whole: Path) -> None:
    assert verify(whole) == len(list(whole.iterdir())) - len(("README.md", MANIFEST_FILE))
    model: Any = AutoModelForImageTextToText.from_pretrained(whole)
    assert model.quota_pruner.recipe.keep == 0.3
    assert model.generation_config.max_length == 77
    assert [file.name for file in whole.parent.iterdir()] == [whole.name]
    assert not any(file.name.startswith(".") for file in whole.iterdir())


@pytest.mark.parametrize(
    ("place", "finished"),
    [("rename 1", 0), ("write 1", 0), ("rename 4", 2), ("write 6", 5), ("rename 11", BLOCKS), ("swap 1", BLOCKS + 1)],
)
def test_a_killed_run_goes_on_and_writes_the_same_files(
    place: str, finished: int, source: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / whole.name
    kill(source, out, place)
    assert not out.exists()
    assert finished_blocks(out) == finished
    quantized = []
    monkeypatch.setattr(calibration, "quantize_linears", counting(calibration.quantize_linears, quantized))
    compress_folder(source, out, SAMPLES)
    assert len(quantized) == BLOCKS - min(finished, BLOCKS)
    assert contents(out) == contents(whole)
    assert [file.name for file in tmp_path.iterdir()] == [out.name]


def counting(function: Callable[..., Any], calls: list[Any]) -> Callable[..., Any]:
    def counted(*arguments: Any) -> Any:
        calls.append(arguments)
        return function(*arguments)

    return counted


def test_to_a_folder_in_the_source_it_goes_on_too(source: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(source, tmp_path / "model"))
    interrupt(model, model / "small")
    compress_folder(model, model / "small", SAMPLES)
    assert verify(model / "small")


def test_more_chat_templates_can_be_read(source: Path, tmp_path: Path) -> None:
    """transformers writes them to a folder of their own."""
    model = Path(shutil.copytree(source, tmp_path / "model"))
    tools = processor()
    tools.chat_template = {"default": tools.chat_template, "tool_use": "{{ messages }}"}
    tools.save_pretrained(model)
    compress_folder(model, tmp_path / "out", SAMPLES, method="paper", layers=(0,))
    [template] = (tmp_path / "out").glob("*/*.jinja")
    assert stat.S_IMODE(template.parent.stat().st_mode) & stat.S_IXUSR
    assert f"{template.parent.name}/{template.name}" in read_manifest(tmp_path / "out" / MANIFEST_FILE)


@pytest.mark.parametrize(
    ("name", "dtype", "says"),
    [("out\udcff", None, "is no text in UTF-8"), ("out", torch.float64, "is in float64")],
    ids=["name", "float64"],
)
def test_what_no_file_or_operator_takes_is_refused_at_once(
    name: str, dtype: torch.dtype | None, says: str, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(QuotaError, match=says):
        compress_folder(source, tmp_path / name, SAMPLES, dtype=dtype)
    assert list(tmp_path.iterdir()) == []


def test_a_second_run_is_refused_until_the_first_is_dead(source: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / whole.name
    first = start(source, out, "write 4", signal.SIGSTOP)
    try:
        assert os.WIFSTOPPED(os.waitpid(first.pid, os.WUNTRACED)[1])
        with pytest.raises(QuotaError, match=f"another run is writing {out}; wait for it"):
            compress_folder(source, out, SAMPLES)
        assert finished_blocks(out) == 3
    finally:
        first.kill()
        first.wait()
    compress_folder(source, out, SAMPLES)
    assert contents(out) == contents(whole)
    assert [file.name for file in tmp_path.iterdir()] == [out.name]


def interrupt(source: Path, out: Path, **options: Any) -> None:
    """Leave a run that got as far as its fourth block."""

    def stop(done: int, total: int) -> None:
        if finished_blocks(out) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress_folder(source, out, SAMPLES, progress=stop, **options)
    assert finished_blocks(out) == 4


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        pytest.param({"samples": make_samples(3, seed=1)}, "samples", id="samples"),
        pytest.param({"scheme": QuantizationScheme(weight_group=32)}, "scheme", id="scheme"),
        pytest.param({"dtype": torch.bfloat16}, "type", id="type"),
    ],
)
def test_an_interrupted_run_of_other_arguments_is_not_mixed_in(
    changes: dict[str, Any], named: str, source: Path, tmp_path: Path
) -> None:
    interrupt(source, tmp_path / "out")
    with pytest.raises(QuotaError, match=f"interrupted run with other .*{named}"):
        compress_folder(source, tmp_path / "out", **{"samples": SAMPLES, **changes})
    assert finished_blocks(tmp_path / "out") == 4


def test_weights_that_changed_in_between_are_not_mixed_in(source: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(source, tmp_path / "source"))
    interrupt(copied, tmp_path / "out")
    file = next(copied.glob("*.safetensors"))
    os.utime(file, ns=(0, 0))
    with pytest.raises(QuotaError, match="interrupted run with other weights"):
        compress_folder(copied, tmp_path / "out", SAMPLES)


def test_files_of_the_processor_that_changed_in_between_are_not_mixed_in(source: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(source, tmp_path / "source"))
    interrupt(copied, tmp_path / "out")
    (copied / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(QuotaError, match="interrupted run with other files"):
        compress_folder(copied, tmp_path / "out", SAMPLES)


def test_another_machine_or_backend_is_not_mixed_in(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(source, tmp_path / "out")
    with ops.use("reference"), pytest.raises(QuotaError, match="interrupted run with other backend"):
        compress_folder(source, tmp_path / "out", SAMPLES)
    monkeypatch.setattr(machine, "instructions", lambda: ["abacus"])
    with pytest.raises(QuotaError, match="interrupted run with other instruction set"):
        compress_folder(source, tmp_path / "out", SAMPLES)


def test_transforms_are_the_same_after_an_interruption(source: Path, tmp_path: Path) -> None:
    scheme = QuantizationScheme()
    interrupt(source, tmp_path / "out", scheme=scheme)
    compress_folder(source, tmp_path / "out", SAMPLES, scheme=scheme)
    compress_folder(source, tmp_path / "whole", SAMPLES, scheme=scheme)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_keep_may_change_between_the_runs(source: Path, tmp_path: Path) -> None:
    interrupt(source, tmp_path / "out")
    assert compress_folder(source, tmp_path / "out", SAMPLES, keep=0.5).recipe.keep == 0.5


def without_a_weight(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        stored = load_file(file)
        stored.pop("language_model.model.norm.weight", None)
        save_file(stored, file, metadata={"format": "pt"})


def pickled(folder: Path) -> None:
    for file in [*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"]:
        file.unlink()


def truncated(folder: Path) -> None:
    file = next(folder.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-10])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param(without_a_weight, "lacks the weight model.language_model.norm.weight", id="missing weight"),
        pytest.param(pickled, "holds no safetensors files", id="no safetensors"),
        pytest.param(truncated, "is not whole", id="truncated"),
    ],
)
def test_a_source_that_cannot_be_read_leaves_nothing(
    spoil: Callable[[Path], None], message: str, source: Path, tmp_path: Path
) -> None:
    copied = Path(shutil.copytree(source, tmp_path / "source"))
    spoil(copied)
    with pytest.raises(QuotaError, match=message):
        compress_folder(copied, tmp_path / "out", SAMPLES)
    assert [file.name for file in tmp_path.iterdir()] == ["source"]


def test_a_layout_that_would_have_to_be_computed_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = Path(shutil.copytree(source, tmp_path / "source"))
    for file in copied.glob("*.safetensors"):
        fused = {name.replace("gate_proj", "gate_up_proj"): tensor for name, tensor in load_file(file).items()}
        save_file(fused, file, metadata={"format": "pt"})
    split = WeightConverter("gate_up_proj.weight", ["gate_proj.weight", "up_proj.weight"], operations=[Chunk(dim=0)])
    rules = weights.get_model_conversion_mapping
    monkeypatch.setattr(weights, "get_model_conversion_mapping", lambda model: [*rules(model), split])
    with pytest.raises(QuotaError, match=r"gate_up_proj.weight in another layout .*; load it and save it anew"):
        compress_folder(copied, tmp_path / "out", SAMPLES)
    assert [file.name for file in tmp_path.iterdir()] == ["source"]


def test_options_out_of_range_leave_nothing(source: Path, tmp_path: Path) -> None:
    with pytest.raises(QuotaError, match="keep"):
        compress_folder(source, tmp_path / "out", SAMPLES, keep=1.5)
    assert list(tmp_path.iterdir()) == []


def test_pictures_that_do_not_fit_the_model_are_one_line(source: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(source, tmp_path / "source"))
    file = copied / "processor_config.json"
    file.write_text(file.read_text().replace('"height": 32', '"height": 40'))
    with pytest.raises(QuotaError, match=r"the model fails \(ValueError: Input image size"):
        compress_folder(copied, tmp_path / "out", SAMPLES)
    assert [file.name for file in tmp_path.iterdir()] == ["source"]


def test_a_checkpoint_of_ours_is_not_compressed_again(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(QuotaError, match="quantised already"):
        compress_folder(whole, tmp_path / "out", SAMPLES)


def test_a_block_is_in_memory_only_while_it_is_needed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    present: list[int] = []
    original = blocks.run

    def run(block: Any, *arguments: Any, **options: Any) -> Any:
        if "LlamaDecoderLayer" in type(block).__name__:
            layers = rooms[0].family.decoder_layers
            present.append(sum(not next(layer.parameters()).is_meta for layer in layers))
        return original(block, *arguments, **options)

    rooms: list[Any] = []
    entered = calibration.Sweep.run
    monkeypatch.setattr(calibration.Sweep, "run", lambda sweep: rooms.append(sweep) or entered(sweep))
    monkeypatch.setattr(calibration, "run", run)
    compress_folder(source, tmp_path / "out", SAMPLES, method="paper")
    assert set(present) == {1}
    assert all(tensor.is_meta for layer in rooms[0].family.decoder_layers for tensor in layer.state_dict().values())


def test_where_the_blocks_gather(tmp_path: Path) -> None:
    folder, job = working_folder(tmp_path / "out")
    assert (folder.name, job.name) == (".out.compressing", ".out.compressing.json")


def test_numbers_of_a_configuration_that_torch_refuses_are_one_line(source: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(source, copied)
    config = json.loads((copied / "config.json").read_text())
    config["vision_config"]["initializer_factor"] = -1.0
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(QuotaError, match=r"the model fails \(RuntimeError: normal expects std >= 0.0"):
        compress_folder(copied, tmp_path / "out", SAMPLES)
