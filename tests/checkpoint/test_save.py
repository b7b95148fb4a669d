from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.tiny_llava import answers, logits, make_model, make_samples, processor
from transformers import AutoModelForImageTextToText, AutoProcessor

import quota
from quota import PruningRecipe, QuantizationScheme, QuotaError
from quota.compress import prune_only, quantize_only
from quota.prompts import build_inputs
from quota.quantization.linear import W4A4Linear

SAMPLES = make_samples(5)


def load(folder: Path, **options: Any) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder, **options)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A compressed model and the folder it was saved to; tests leave both as they are."""
    model = make_model()
    quota.compress(model, processor(), SAMPLES)
    folder = tmp_path_factory.mktemp("saved") / "checkpoint"
    quota.save_pretrained(model, processor(), folder)
    return model, folder


def test_reloaded_model_gives_the_same_tokens_and_logits(saved: tuple[Any, Path]) -> None:
    model, folder = saved
    again = load(folder)
    with quota.record(again) as trace:
        tokens = answers(again)
    with quota.record(model) as expected:
        assert torch.equal(tokens, answers(model))
    assert torch.equal(logits(again), logits(model))
    assert list(trace.kept) == list(expected.kept)
    for layer, kept in trace.kept.items():
        assert torch.equal(kept, expected.kept[layer])


SCHEMES = {
    "W8A8KV8": QuantizationScheme(weight_bits=8, activation_bits=8, kv_bits=8),
    "W4A16KV16": QuantizationScheme(activation_bits=16, kv_bits=16),
    "no rotation": QuantizationScheme(hadamard=0),
    "groups of 32 and 16": QuantizationScheme(weight_group=32, activation_group=16),
    "decoder only": QuantizationScheme(modules=("decoder",)),
    "learned transforms": QuantizationScheme(transforms="learned"),
    "learned transforms, 16-bit KV": QuantizationScheme(transforms="learned", kv_bits=16),
}


# What compressed-tensors advises of groups of two sizes is no user's business.
@pytest.mark.filterwarnings("error:Using GROUP strategy")
@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_every_scheme_and_type_comes_back_the_same(
    scheme: QuantizationScheme, dtype: torch.dtype, tmp_path: Path
) -> None:
    make_model().save_pretrained(tmp_path / "original")
    model = load(tmp_path / "original", dtype=dtype)
    quota.compress(model, processor(), SAMPLES[:2], scheme=scheme)
    quota.save_pretrained(model, processor(), tmp_path / "out")
    again = load(tmp_path / "out")
    assert again.dtype == dtype
    assert torch.equal(logits(again), logits(model))


def test_quantized_only_model_comes_back_unpruned(tmp_path: Path) -> None:
    model = make_model()
    quantize_only(model, processor(), SAMPLES)
    quota.save_pretrained(model, processor(), tmp_path / "out")
    again = load(tmp_path / "out")
    assert not (tmp_path / "out" / "recipe.json").exists()
    assert not hasattr(again, "quota_pruner")
    assert torch.equal(logits(again), logits(model))


def test_saving_a_loaded_model_writes_the_same_checkpoint(saved: tuple[Any, Path], tmp_path: Path) -> None:
    again = tmp_path / "again"
    quota.save_pretrained(load(saved[1]), AutoProcessor.from_pretrained(saved[1]), again)
    before, after = tensors(saved[1]), tensors(again)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert PruningRecipe.load(again / "recipe.json") == PruningRecipe.load(saved[1] / "recipe.json")
    configs = [json.loads((folder / "config.json").read_text()) for folder in (saved[1], again)]
    for key in ("quota", "quantization_config"):
        assert configs[0][key] == configs[1][key]


@pytest.mark.parametrize("fresh", [True, False], ids=["compressed here", "loaded"])
def test_the_save_pretrained_of_transformers_writes_what_loads(
    fresh: bool, saved: tuple[Any, Path], tmp_path: Path
) -> None:
    model = saved[0] if fresh else load(saved[1])
    model.save_pretrained(tmp_path / "out")
    again = load(tmp_path / "out")
    assert again.quota_pruner.recipe == saved[0].quota_pruner.recipe
    assert torch.equal(logits(again), logits(saved[0]))
    configs = [json.loads((folder / "config.json").read_text()) for folder in (saved[1], tmp_path / "out")]
    assert configs[0]["quantization_config"] == configs[1]["quantization_config"]


def test_a_copy_saves_itself_and_not_the_model_it_was_copied_from(saved: tuple[Any, Path], tmp_path: Path) -> None:
    twin = copy.deepcopy(load(saved[1]))
    twin.get_input_embeddings().weight_scale.mul_(2)
    twin.save_pretrained(tmp_path / "out")
    changed = logits(load(tmp_path / "out"))
    assert torch.equal(changed, logits(twin)) and not torch.equal(changed, logits(saved[0]))


def test_processor_and_generation_settings_travel(saved: tuple[Any, Path]) -> None:
    again = AutoProcessor.from_pretrained(saved[1])
    sample = SAMPLES[0]
    texts = [build_inputs(tools, [sample])["input_ids"] for tools in (processor(), again)]
    assert torch.equal(*texts)
    stored = json.loads((saved[1] / "generation_config.json").read_text())
    assert stored["eos_token_id"] == saved[0].generation_config.eos_token_id


def test_a_folder_of_ours_is_replaced_and_another_is_not(saved: tuple[Any, Path], tmp_path: Path) -> None:
    older = tmp_path / "older"
    quota.save_pretrained(saved[0], processor(), older)
    (older / "leftover.txt").write_text("from the older checkpoint")
    quota.save_pretrained(saved[0], processor(), older)
    assert not (older / "leftover.txt").exists()
    assert torch.equal(logits(load(older)), logits(saved[0]))
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    with pytest.raises(QuotaError, match="not empty"):
        quota.save_pretrained(saved[0], processor(), foreign)
    assert [file.name for file in foreign.iterdir()] == ["thesis.tex"]


def test_files_hold_packed_weights_under_the_original_names(saved: tuple[Any, Path]) -> None:
    model, folder = saved
    stored = tensors(folder)
    layers = [module for module in model.modules() if isinstance(module, W4A4Linear)]
    bits = sum(layer.in_features * layer.out_features * layer.spec.bits for layer in layers)
    packed = {name: tensor for name, tensor in stored.items() if name.endswith(".weight_packed")}
    assert len(packed) == len(layers)
    assert sum(tensor.nbytes for tensor in packed.values()) == bits / 8
    assert all(tensor.dtype == torch.bfloat16 for name, tensor in stored.items() if name.endswith(".weight_scale"))
    # Names as LLaVA checkpoints have them, not as transformers 5 calls the modules.
    prefixes = ("language_model.model.", "vision_tower.", "multi_modal_projector.")
    assert all(name.startswith(prefixes) for name in stored)


def test_a_layer_of_usual_width_takes_at_most_054_bytes_a_weight(tmp_path: Path) -> None:
    model = make_model(inner=576)
    quantize_only(model, processor(), SAMPLES[:1], QuantizationScheme(weight_rounding="rtn"))
    quota.save_pretrained(model, processor(), tmp_path / "out")
    stored = tensors(tmp_path / "out")
    parts = [t for name, t in stored.items() if ".weight_" in name and ("down_proj" in name or "up_proj" in name)]
    assert sum(tensor.nbytes for tensor in parts) <= 0.54 * (2 * 6 * 576 * 64)


def test_a_large_checkpoint_is_saved_in_shards(saved: tuple[Any, Path], tmp_path: Path) -> None:
    quota.save_pretrained(saved[0], processor(), tmp_path / "out", max_shard_size="60KB")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    assert torch.equal(logits(load(tmp_path / "out")), logits(saved[0]))


def test_card_says_what_is_kept_and_how_to_load(saved: tuple[Any, Path]) -> None:
    card = (saved[1] / "README.md").read_text()
    counts = PruningRecipe.load(saved[1] / "recipe.json").counts(16)
    assert "W4A4KV4" in card
    assert "30% kept" in card
    assert all(f": {count}" in card for count in counts)
    assert "apply_transform_config" in card
    assert "Retention: not measured" in card
    assert f"quota {quota.__version__}, torch {torch.__version__.split('+')[0]}" in card
    assert not re.search(r"\{\w+\}", card)


def test_a_save_that_fails_leaves_nothing(
    saved: tuple[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: PruningRecipe, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PruningRecipe, "save", fail)
    with pytest.raises(QuotaError, match="no space left"):
        quota.save_pretrained(saved[0], processor(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def pruned_only_model() -> Any:
    model = make_model()
    prune_only(model, PruningRecipe(**PLAIN_RECIPE, model_fingerprint=quota.models.fingerprint(model)))
    return model


PLAIN_RECIPE: dict[str, Any] = {"layers": (2,), "keep_ratios": (0.5,), "keep": 0.5, "reference_tokens": 16}


def sixteen_bit_weights() -> Any:
    model = make_model()
    quantize_only(model, processor(), SAMPLES[:1], QuantizationScheme(weight_bits=16, activation_bits=16))
    return model


@pytest.mark.parametrize(
    ("build", "message"),
    [
        pytest.param(make_model, "only a quantised model", id="original model"),
        pytest.param(pruned_only_model, "only a quantised model", id="pruned only"),
        pytest.param(sixteen_bit_weights, "no packed format", id="16-bit weights"),
    ],
)
def test_what_cannot_be_saved_is_refused(build: Callable[[], Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(QuotaError, match=message):
        quota.save_pretrained(build(), processor(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_transformers_does_not_save_what_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(QuotaError, match="no packed format"):
        sixteen_bit_weights().save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()
