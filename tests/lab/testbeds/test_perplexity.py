"""Perplexity against its definition, and the interval of a ratio."""

from __future__ import annotations

import math

import pytest
import torch
from support.tiny_text import VOCABULARY, make_llama

from quota_lab.testbeds.perplexity import perplexity, ratio_interval, window_losses


def test_perplexity_is_what_the_definition_says() -> None:
    model = make_llama()
    windows = torch.randint(VOCABULARY, (3, 10), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        chances = model(input_ids=windows).logits.double().softmax(-1)
    logs = [math.log(chances[row, position, windows[row, position + 1]]) for row in range(3) for position in range(9)]
    assert perplexity(window_losses(model, windows)) == pytest.approx(math.exp(-sum(logs) / len(logs)), rel=1e-4)


def test_the_interval_holds_the_ratio_and_is_a_point_for_a_constant_one() -> None:
    baseline = [2.0, 3.0, 2.5, 2.2, 2.9]
    assert ratio_interval([loss + math.log(1.5) for loss in baseline], baseline) == pytest.approx((1.5, 1.5))
    worse = [loss + extra for loss, extra in zip(baseline, [0.1, 0.3, 0.2, 0.25, 0.15], strict=True)]
    low, high = ratio_interval(worse, baseline)
    assert 1 < low < perplexity(worse) / perplexity(baseline) < high
