"""Selection: normalised to [0, 1], deterministic under ties, and every row on its own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from quota.errors import QuotaError
from quota.ops.choice import top_k
from quota.pruning.scorers.metrics import combine, normalize

rows = hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(-1e6, 1e6, width=32))
# Few distinct values, so that ties are common.
tied = hnp.arrays(np.float32, st.integers(1, 40), elements=st.sampled_from([-1.0, -0.0, 0.0, 0.5, 2.0]))


def whole(row: Tensor) -> Tensor:
    return torch.ones_like(row, dtype=torch.bool)


def padded(row: Tensor, left: int, right: int, fill: float) -> tuple[Tensor, Tensor]:
    """A row among padding on both sides that holds `fill`; and its valid mask."""
    metric = torch.cat([torch.full((left,), fill), row, torch.full((right,), fill)])
    valid = torch.zeros(len(metric), dtype=torch.bool)
    valid[left : left + len(row)] = True
    return metric[None], valid[None]


def naive_top_k(score: list[float], count: int) -> list[int]:
    ranked = sorted(range(len(score)), key=lambda index: (-score[index], index))
    return sorted(ranked[:count])


class TestNormalize:
    def test_written_example(self) -> None:
        # 0..100: P1 = 1 and P99 = 99, so 0 and 100 are clipped.
        metric = torch.arange(101.0)[None]
        expected = ((torch.arange(101.0) - 1) / 98).clamp(0, 1)
        torch.testing.assert_close(normalize(metric, whole(metric))[0], expected)

    @given(rows)
    def test_percentiles_are_numpy_s(self, row: np.ndarray) -> None:
        low, high = np.percentile(row.astype(np.float64), [1, 99])
        metric = torch.from_numpy(row)[None]
        got = normalize(metric, whole(metric))[0].numpy()
        if high - low > 1e-3:
            expected = np.clip((row.astype(np.float64) - low) / (high - low), 0, 1)
            np.testing.assert_allclose(got, expected, atol=1e-6)

    @given(rows)
    def test_within_zero_and_one(self, row: np.ndarray) -> None:
        metric = torch.from_numpy(row)[None]
        got = normalize(metric, whole(metric))
        assert bool(((got >= 0) & (got <= 1)).all())

    @given(rows, st.integers(0, 5), st.integers(0, 5), st.sampled_from([0.0, 1e9, -1e9, math.nan, math.inf]))
    def test_padding_changes_no_bit(self, row: np.ndarray, left: int, right: int, fill: float) -> None:
        alone = torch.from_numpy(row)[None]
        metric, valid = padded(torch.from_numpy(row), left, right, fill)
        got = normalize(metric, valid)
        assert torch.equal(got[valid], normalize(alone, whole(alone))[0])
        assert bool((got[~valid] == 0).all())

    @pytest.mark.parametrize("percentiles", [(0.0, 100.0), (5.0, 95.0)])
    def test_other_percentiles(self, percentiles: tuple[float, float]) -> None:
        metric = torch.arange(101.0)[None]
        low, high = percentiles
        expected = ((torch.arange(101.0) - low) / (high - low)).clamp(0, 1)
        torch.testing.assert_close(normalize(metric, whole(metric), percentiles)[0], expected)

    @pytest.mark.parametrize("row", [[3.0] * 5, [0.0] * 4, [7.0], []], ids=["constant", "zero", "one", "none"])
    def test_no_spread_gives_zeros(self, row: list[float]) -> None:
        metric = torch.tensor([row])
        assert torch.equal(normalize(metric, whole(metric)), torch.zeros(1, len(row)))

    def test_sample_without_an_image(self) -> None:
        metric, valid = torch.ones(2, 3), torch.tensor([[True] * 3, [False] * 3])
        assert torch.equal(normalize(metric, valid), torch.zeros(2, 3))

    def test_the_widest_range_does_not_overflow(self) -> None:
        biggest = torch.finfo(torch.float32).max
        metric = torch.tensor([[-biggest, 0.0, biggest]])
        torch.testing.assert_close(normalize(metric, whole(metric), (0, 100)), torch.tensor([[0.0, 0.5, 1.0]]))

    def test_bfloat16_becomes_float32(self) -> None:
        metric = torch.rand(2, 9, generator=torch.Generator().manual_seed(0)).bfloat16()
        got = normalize(metric, whole(metric))
        assert got.dtype == torch.float32
        assert torch.equal(got, normalize(metric.float(), whole(metric)))

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_refuses(self, bad: float) -> None:
        metric = torch.tensor([[0.0, bad, 1.0]])
        with pytest.raises(QuotaError, match="NaN or infinity"):
            normalize(metric, whole(metric))


class TestCombine:
    def test_weighted_sum(self) -> None:
        metrics = {"mag": torch.tensor([[1.0, 0.0]]), "inter": torch.tensor([[0.5, 1.0]])}
        got = combine(metrics, {"inter": 0.45, "mag": 0.25})
        torch.testing.assert_close(got, torch.tensor([[0.475, 0.45]]))

    def test_key_order_changes_no_bit(self) -> None:
        draw = torch.Generator().manual_seed(0)
        metrics = {name: torch.rand(2, 99, generator=draw) for name in "abcd"}
        weights = dict(zip("abcd", (0.45, 0.25, 0.1, 0.2), strict=True))
        backwards = {name: weights[name] for name in reversed(weights)}
        assert torch.equal(combine(metrics, weights), combine(dict(reversed(metrics.items())), backwards))

    @pytest.mark.parametrize(
        ("metrics", "weights"),
        [({"a"}, {"a": 1.0, "b": 1.0}), ({"a", "b"}, {"a": 1.0}), (set(), {})],
        ids=["weight without metric", "metric without weight", "nothing"],
    )
    def test_refuses(self, metrics: set[str], weights: dict[str, float]) -> None:
        with pytest.raises(QuotaError, match="do not match"):
            combine({name: torch.zeros(1, 2) for name in metrics}, weights)


class TestTopK:
    def test_written_example(self) -> None:
        score = torch.tensor([[0.1, 0.9, 0.5, 0.9, 0.2]])
        assert top_k(score, [3], whole(score)).tolist() == [[1, 2, 3]]

    def test_ties_go_to_the_lower_index(self) -> None:
        score = torch.zeros(1, 6)
        assert top_k(score, [2], whole(score)).tolist() == [[0, 1]]

    @given(tied, st.integers(0, 45))
    def test_agrees_with_the_naive_one(self, row: np.ndarray, count: int) -> None:
        score = torch.from_numpy(row)[None]
        assert top_k(score, [count], whole(score))[0].tolist() == naive_top_k(row.tolist(), count)

    @given(st.lists(st.tuples(tied, st.integers(0, 45), st.integers(0, 4), st.sampled_from([9e9, math.nan]))))
    def test_a_batch_selects_what_its_rows_do_alone(self, samples: list[tuple[np.ndarray, int, int, float]]) -> None:
        width = max((len(row) + left for row, _, left, _ in samples), default=0)
        score = torch.zeros(len(samples), width)
        valid = torch.zeros(len(samples), width, dtype=torch.bool)
        for index, (row, _, left, fill) in enumerate(samples):
            right = width - left - len(row)
            score[index], valid[index] = (t[0] for t in padded(torch.from_numpy(row), left, right, fill))
        got = top_k(score, [count for _, count, _, _ in samples], valid)
        expected = [[left + i for i in naive_top_k(row.tolist(), count)] for row, count, left, _ in samples]
        assert got.shape == (len(samples), max(map(len, expected), default=0))
        for kept, alone in zip(got.tolist(), expected, strict=True):
            assert kept == alone + [-1] * (got.shape[1] - len(alone))

    def test_repeated_runs_agree(self) -> None:
        score = torch.randint(0, 5, (4, 576), generator=torch.Generator().manual_seed(0)).float()
        first = top_k(score, [173] * 4, whole(score))
        assert all(torch.equal(top_k(score, [173] * 4, whole(score)), first) for _ in range(3))

    def test_valid_minus_infinity_comes_before_padding(self) -> None:
        score = torch.tensor([[0.0, -math.inf, -math.inf]])
        assert top_k(score, [2], torch.tensor([[False, True, True]])).tolist() == [[1, 2]]

    def test_shorter_rows_end_in_minus_one(self) -> None:
        score = torch.rand(2, 4, generator=torch.Generator().manual_seed(0))
        kept = top_k(score, [4, 1], whole(score))
        assert kept[1].tolist() == [int(score[1].argmax()), -1, -1, -1]

    def test_counts_may_be_a_tensor(self) -> None:
        score = torch.tensor([[1.0, 2.0], [2.0, 1.0]])
        assert top_k(score, torch.tensor([1, 1]), whole(score)).tolist() == [[1], [0]]

    def test_refuses_nan(self) -> None:
        score = torch.tensor([[0.0, math.nan]])
        with pytest.raises(QuotaError, match="NaN"):
            top_k(score, [1], whole(score))
