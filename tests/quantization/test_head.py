"""lm_head in few bits: close to what it was, saved and loaded again, tied to nothing any more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_llama import make_llama
from support.tiny_llava import make_model, make_samples, processor
from torch import nn
from transformers import AutoModelForImageTextToText

import quota
from quota.checkpoint.save import quantization_config
from quota.compress_folder import compress_folder
from quota.errors import QuotaError
from quota.quantization.head import quantize_head
from quota.quantization.linear import W4A4Linear
from quota.scheme import QuantizationScheme

bits_48 = pytest.mark.parametrize("bits", [4, 8], ids=["4bit", "8bit"])


def logits(model: Any) -> torch.Tensor:
    tokens = torch.arange(24).unsqueeze(0) * 3 % 90
    with torch.no_grad():
        return model(input_ids=tokens).logits


@bits_48
def test_logits_stay_close(bits: int) -> None:
    model = make_llama()
    before = logits(model)
    quantize_head(model, QuantizationScheme(head_bits=bits))
    assert model.lm_head.spec.name == f"W{bits}A8"
    error = (logits(model) - before).norm() / before.norm()
    assert 1e-4 < error < (0.12 if bits == 4 else 0.012)


def test_with_16_bits_nothing_happens() -> None:
    model = make_llama()
    quantize_head(model, QuantizationScheme())
    assert type(model.lm_head) is nn.Linear and model.lm_head.weight is model.model.embed_tokens.weight


def test_a_tied_embedding_stays_as_it_is_and_the_tie_is_undone() -> None:
    model = make_llama()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    embedding = model.model.embed_tokens.weight.clone()
    quantize_head(model, QuantizationScheme(head_bits=4))
    quantize_head(model, QuantizationScheme(head_bits=4))
    model.tie_weights()
    assert isinstance(model.lm_head, W4A4Linear)
    assert torch.equal(model.model.embed_tokens.weight, embedding)
    assert not model.config.tie_word_embeddings
    assert "lm_head.weight_packed" in model.state_dict()


def test_a_head_that_is_no_linear_layer_is_refused() -> None:
    model = make_llama()
    model.lm_head = nn.Sequential(nn.Linear(64, 96))
    with pytest.raises(QuotaError, match="the model's head is Sequential"):
        quantize_head(model, QuantizationScheme(head_bits=4))


@pytest.mark.slow
@bits_48
def test_a_model_is_saved_and_loaded_with_its_head(bits: int, tmp_path: Path) -> None:
    model, tools, samples = make_model(), processor(), make_samples(3)
    scheme = QuantizationScheme(head_bits=bits)
    model.save_pretrained(tmp_path / "full")
    tools.save_pretrained(tmp_path / "full")
    quota.compress(model, tools, samples, keep=0.5, scheme=scheme, method="paper")
    quota.save_pretrained(model, tools, tmp_path / "memory")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "memory")
    assert isinstance(loaded.lm_head, W4A4Linear)
    assert torch.equal(logits(loaded), logits(model))
    compress_folder(tmp_path / "full", tmp_path / "streamed", samples, keep=0.5, scheme=scheme, method="paper")
    streamed = AutoModelForImageTextToText.from_pretrained(tmp_path / "streamed")
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, streamed.state_dict()[name]), name


@bits_48
def test_its_bits_are_described(bits: int) -> None:
    model = make_model()
    scheme = QuantizationScheme(head_bits=bits, weight_rounding="rtn")
    for name, linear in quota.models.family(model).linears():
        model.set_submodule(name, W4A4Linear.from_linear(linear, scheme))
    quantize_head(model, scheme)
    groups = quantization_config(model, scheme)["config_groups"]
    [head] = [group for group in groups.values() if "lm_head" in group["targets"]]
    assert (head["weights"]["num_bits"], head["input_activations"]["num_bits"]) == (bits, 8)
