from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_llava import make_model, make_samples, processor
from torch import Tensor

from quota.calibration.sweep import Sweep
from quota.calibration.token_weights import token_weights
from quota.errors import QuotaError
from quota.prompts import build_inputs
from quota.scheme import QuantizationScheme


def masks(*counts: tuple[int, int]) -> list[Tensor]:
    """Samples of (visual, text) tokens."""
    return [torch.tensor([[True] * visual + [False] * text]) for visual, text in counts]


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=4), st.floats(0.05, 0.95))
def test_visual_tokens_have_their_share_of_one_weight_a_token(counts: list[tuple[int, int]], share: float) -> None:
    visual = masks(*counts)
    weights = token_weights(visual, share)
    assert weights is not None
    whole = sum(float(weight.sum()) for weight in weights)
    seen = sum(float(weight[mask[0]].sum()) for weight, mask in zip(weights, visual, strict=True))
    assert whole == pytest.approx(sum(map(sum, counts)), rel=1e-4)
    assert seen / whole == pytest.approx(share, rel=1e-4)


def test_the_share_that_they_have_anyway_is_one_weight_for_all() -> None:
    weights = token_weights(masks((3, 1), (3, 1)), 0.75)
    assert weights is not None
    torch.testing.assert_close(torch.stack(weights), torch.ones(2, 4))


@pytest.mark.parametrize(("counts", "share"), [((3, 1), None), ((4, 0), 0.5), ((0, 4), 0.5)])
def test_without_a_share_or_one_of_the_kinds_all_tokens_are_alike(counts: tuple[int, int], share: Any) -> None:
    assert token_weights(masks(counts), share) is None


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_a_share_that_leaves_nothing_for_one_kind_is_refused(share: float) -> None:
    inputs = [build_inputs(processor(), [sample]) for sample in make_samples(1)]
    with pytest.raises(QuotaError, match="visual_share"):
        Sweep(make_model(), inputs, QuantizationScheme(), visual_share=share)


@pytest.mark.parametrize("transforms", ["hadamard", "learned"])
def test_what_counts_more_is_met_better(transforms: Any) -> None:
    inputs = [build_inputs(processor(), [sample]) for sample in make_samples(8)]
    # Of activations that are not rounded, weights alone make the error.
    scheme = QuantizationScheme(transforms=transforms, modules=("decoder",), activation_bits=16, kv_bits=16)
    errors = []
    for share in (0.02, 0.98):
        sweep = Sweep(make_model(layers=4), inputs, scheme, visual_share=share)
        sweep.run()
        wrong = [
            ((deployed - exact)[~visual].norm() / exact[~visual].norm(), (deployed - exact)[visual].norm())
            for deployed, exact, visual in zip(sweep.deployed, sweep.exact, sweep.visual, strict=True)
        ]
        errors.append(torch.tensor(wrong).mean(dim=0))
    text_first, visual_first = errors
    assert text_first[0] < visual_first[0] and visual_first[1] < text_first[1]
