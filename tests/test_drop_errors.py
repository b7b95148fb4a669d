"""Errors of single cuts, and the schedule made from them."""

from __future__ import annotations

import pytest
import torch
from tiny_llava import LAYERS, VISUAL_TOKENS, make_model, make_samples, processor

from quota.drop_errors import candidates, divergence, measure_drops
from quota.method import quota_cuts
from quota.pruning import is_pruned


@pytest.mark.parametrize(
    ("depth", "expected"),
    [(10, [-1, 0, 1, 2, 3, 4]), (32, [-1, 2, 5, 9, 12, 15]), (28, [-1, 2, 5, 7, 10, 13])],
)
def test_candidates_reach_from_the_projector_to_the_middle(depth: int, expected: list[int]) -> None:
    assert candidates(depth) == expected


def test_divergence_of_a_written_example() -> None:
    full, pruned = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    # 1/2 ln 2 + 1/2 ln (2/3)
    assert divergence(full, pruned) == pytest.approx(0.143841)
    assert divergence(full, full) == 0


def test_divergence_is_the_geometric_mean_of_the_samples() -> None:
    full = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log()
    pruned = torch.tensor([[0.25, 0.75], [1e-6, 1 - 1e-6]]).log()
    # The second sample alone: 1/2 ln (0.5 / 1e-6) + 1/2 ln (0.5 / (1 - 1e-6))
    assert divergence(full, pruned) == pytest.approx((0.143841 * 6.214609) ** 0.5, rel=1e-4)


def test_keeping_all_is_no_error_and_the_model_is_left_alone() -> None:
    model = make_model()
    errors = measure_drops(model, processor(), make_samples(3), None, VISUAL_TOKENS, LAYERS, (1.0, 0.5, 0.1))
    assert list(errors) == candidates(LAYERS)
    for table in errors.values():
        assert list(table) == [16, 8, 2]
        assert table[16] == 0 < table[2]
    assert not is_pruned(model)


def test_quota_cuts_end_at_the_final_ratio() -> None:
    config = make_model().config.get_text_config()
    errors = {layer: {8: 0.1, 5: 0.2} for layer in (-1, 2)}
    cuts = quota_cuts(errors, 16, LAYERS, 0.3, 0.8, config)
    assert cuts.keep_ratios[-1] == 0.3 and cuts.scorer == "peaks"
    everything = quota_cuts(errors, 16, LAYERS, 1.0, 1.0, config)
    assert everything.keep_ratios == (1.0,)
