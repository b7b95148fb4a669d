"""Embedding and lm_head in few bits: close to what they were, saved and loaded again, stored once where tied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_llava import make_model, make_samples, processor
from support.tiny_text import make_llama
from torch import nn
from transformers import AutoModelForImageTextToText

import quota
from quota.checkpoint.save import quantization_config
from quota.compress_folder import compress_folder
from quota.errors import QuotaError
from quota.quantization.embedding import QuantizedEmbedding, TiedHead
from quota.quantization.ends import quantize_ends
from quota.quantization.linear import W4A4Linear
from quota.scheme import QuantizationScheme

bits_48 = pytest.mark.parametrize("bits", [4, 8], ids=["4bit", "8bit"])


def logits(model: Any) -> torch.Tensor:
    tokens = torch.arange(24).unsqueeze(0) * 3 % 90
    with torch.no_grad():
        return model(input_ids=tokens).logits


def untied_llama() -> Any:
    model = make_llama()
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    return model


@bits_48
def test_logits_stay_close(bits: int) -> None:
    model = make_llama()
    before = logits(model)
    quantize_ends(model, QuantizationScheme(head_bits=bits, embedding_bits=16))
    assert model.lm_head.spec.name == f"W{bits}A8"
    error = (logits(model) - before).norm() / before.norm()
    assert 1e-4 < error < (0.12 if bits == 4 else 0.012)


def test_an_embedding_in_8_bits_costs_little() -> None:
    model = make_llama()
    before = logits(model)
    quantize_ends(model, QuantizationScheme(head_bits=16))
    assert type(model.lm_head) is nn.Linear and isinstance(model.model.embed_tokens, QuantizedEmbedding)
    error = (logits(model) - before).norm() / before.norm()
    assert 1e-4 < error < 0.02


def test_with_16_bits_nothing_happens() -> None:
    model = make_llama()
    quantize_ends(model, QuantizationScheme(weight_bits=16, activation_bits=16))
    assert type(model.lm_head) is nn.Linear and model.lm_head.weight is model.model.embed_tokens.weight


def test_a_tied_embedding_stays_as_it_is_and_the_tie_is_undone() -> None:
    model = make_llama()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    embedding = model.model.embed_tokens.weight.clone()
    quantize_ends(model, QuantizationScheme(head_bits=4, embedding_bits=16))
    model.tie_weights()
    assert isinstance(model.lm_head, W4A4Linear)
    assert torch.equal(model.model.embed_tokens.weight, embedding)
    assert not model.config.tie_word_embeddings
    assert "lm_head.weight_packed" in model.state_dict()


def test_tied_ends_of_8_bits_are_stored_once_and_the_same_as_apart() -> None:
    model, apart = make_llama(), untied_llama()
    for each in (model, apart):
        quantize_ends(each, QuantizationScheme())
        each.tie_weights()
    assert isinstance(model.lm_head, TiedHead) and model.lm_head.embedding is model.model.embed_tokens
    assert not any(name.startswith("lm_head") for name in model.state_dict())
    assert isinstance(apart.lm_head, W4A4Linear)
    for name, tensor in apart.lm_head.state_dict().items():
        assert torch.equal(tensor, model.model.embed_tokens.state_dict()[name]), name
    assert torch.equal(logits(model), logits(apart))


def test_a_4_bit_head_has_integers_of_its_own() -> None:
    model = make_llama()
    quantize_ends(model, QuantizationScheme(head_bits=4))
    assert (model.lm_head.spec.bits, model.model.embed_tokens.spec.bits) == (4, 8)


def test_a_head_that_is_no_linear_layer_is_refused_before_anything_is_changed() -> None:
    model = make_llama()
    model.lm_head = nn.Sequential(nn.Linear(64, 96))
    with pytest.raises(QuotaError, match="the model's head is Sequential"):
        quantize_ends(model, QuantizationScheme())
    assert type(model.model.embed_tokens) is nn.Embedding


ENDS = {
    "tied": {},
    "head of 4 bits": {"head_bits": 4},
    "head alone": {"embedding_bits": 16},
    "embedding alone": {"head_bits": 16},
    "both in 16 bits": {"head_bits": 16, "embedding_bits": 16},
}


@pytest.mark.slow
@pytest.mark.parametrize("ends", ENDS.values(), ids=ENDS)
def test_a_model_is_saved_and_loaded_with_its_ends(ends: dict[str, Any], tmp_path: Path) -> None:
    model, tools, samples = make_model(), processor(), make_samples(3)
    scheme = QuantizationScheme(**ends)
    model.save_pretrained(tmp_path / "full")
    tools.save_pretrained(tmp_path / "full")
    quota.compress(model, tools, samples, keep=0.5, scheme=scheme, method="paper")
    quota.save_pretrained(model, tools, tmp_path / "memory")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "memory")
    assert isinstance(loaded.lm_head, TiedHead) == (not ends)
    assert isinstance(loaded.get_input_embeddings(), QuantizedEmbedding) == (scheme.embedding_bits == 8)
    assert torch.equal(logits(loaded), logits(model))
    compress_folder(tmp_path / "full", tmp_path / "streamed", samples, keep=0.5, scheme=scheme, method="paper")
    streamed = AutoModelForImageTextToText.from_pretrained(tmp_path / "streamed")
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, streamed.state_dict()[name]), name


@bits_48
def test_their_bits_are_described(bits: int) -> None:
    model = make_model()
    scheme = QuantizationScheme(head_bits=bits, weight_rounding="rtn")
    for name, linear in quota.models.family(model).linears():
        model.set_submodule(name, W4A4Linear.from_linear(linear, scheme))
    quantize_ends(model, scheme)
    described = quantization_config(model, scheme)
    groups = described["config_groups"]
    [head] = [group for group in groups.values() if "lm_head" in group["targets"]]
    assert (head["weights"]["num_bits"], head["input_activations"]["num_bits"]) == (bits, 8)
    name = "model.language_model.embed_tokens"
    assert not any(name in group["targets"] for group in groups.values())
    rotations = described["transform_config"]["config_groups"].values()
    [place] = [place for rotation in rotations for place in rotation["apply"] if name in place["targets"]]
    assert place["location"] == "output"
