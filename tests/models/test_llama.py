"""A decoder without a tower goes through the sweep of the others, and is refused where pictures are needed."""

from __future__ import annotations

import pytest
import torch
from support.tiny_llava import make_samples, processor
from support.tiny_text import VOCABULARY, make_llama

import quota
from quota.attention.hook import attach_cache
from quota.calibration.sweep import calibrate
from quota.compress import quantize_only
from quota.errors import QuotaError
from quota.models import family
from quota.quantization.linear import W4A4Linear
from quota.scheme import QuantizationScheme


def test_all_of_a_prompt_is_text() -> None:
    parts = family(make_llama())
    assert not parts.sees
    assert not parts.visual_mask(torch.tensor([[1, 3, 5]])).any()
    assert all(name.startswith("model.layers.") for name, _ in parts.linears())


def test_the_sweep_quantises_every_linear_and_many_bits_change_little() -> None:
    ids = torch.randint(VOCABULARY, (4, 24), generator=torch.Generator().manual_seed(1))
    exact, model = make_llama(), make_llama()
    scheme = QuantizationScheme(weight_bits=8, activation_bits=8, kv_bits=8)
    calibration = calibrate(model, [{"input_ids": window[None]} for window in ids], scheme)
    attach_cache(model, scheme)
    assert calibration.quantized == 3 * 7
    assert sum(type(module) is W4A4Linear for module in model.modules()) == 3 * 7
    assert calibration.reference_tokens == 0
    assert 0 < max(calibration.curves.sensitivity) < 0.1
    with torch.no_grad():
        difference = model(input_ids=ids).logits - exact(input_ids=ids).logits
        assert difference.norm() < 0.1 * exact(input_ids=ids).logits.norm()


@pytest.mark.parametrize("make", [quota.compress, quantize_only], ids=["compress", "quantize_only"])
def test_pictures_need_a_tower(make) -> None:
    with pytest.raises(QuotaError, match="LlamaForCausalLM has no vision tower"):
        make(make_llama(), processor(), make_samples(2))
