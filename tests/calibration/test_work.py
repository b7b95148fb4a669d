from __future__ import annotations

from torch import nn

from quota.calibration.work import PASSES, RESTORED_PASSES, block_work, forward_work


def block() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Sequential(nn.Linear(6, 2, bias=False)))


def test_a_pass_multiplies_every_weight_by_every_token() -> None:
    assert forward_work([block(), nn.Linear(3, 3)], 5) == 5 * (4 * 6 + 6 * 2 + 3 * 3)


def test_a_block_is_run_and_corrected() -> None:
    assert block_work(block(), 5, finished=False) == PASSES * 5 * 36 + (6 * 4**2 + 2 * 6**2)


def test_a_finished_block_is_only_run() -> None:
    assert block_work(block(), 5, finished=True) == RESTORED_PASSES * 5 * 36


def test_tokens_and_width_cost() -> None:
    wide = nn.Linear(8, 8)
    assert block_work(wide, 10, finished=False) < block_work(wide, 20, finished=False)
    assert block_work(block(), 10, finished=False) < block_work(wide, 10, finished=False)
