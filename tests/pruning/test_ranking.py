"""The risk of a token."""

from __future__ import annotations

import torch
from support.fake_quantize import fake_quantize

from quota.pruning.ranking import risk
from quota.scheme import QuantizationScheme


def test_risk_is_the_norm_of_the_quantisation_error() -> None:
    tokens = torch.randn(2, 3, 128, generator=torch.Generator().manual_seed(0))
    scheme = QuantizationScheme()
    error = fake_quantize(tokens, scheme) - tokens
    torch.testing.assert_close(risk(tokens, scheme), error.square().sum(dim=-1).sqrt())
    assert not risk(tokens, QuantizationScheme(activation_bits=16)).any()
    assert not risk(tokens, QuantizationScheme(modules=("tower",))).any()
