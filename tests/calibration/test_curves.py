"""What a calibration measures, on written numbers."""

from __future__ import annotations

import math

import pytest
import torch

from quota.attention.observation import Observation
from quota.calibration.curves import attention_concentration, median_cosine, relative_error, sensitivity, token_error
from quota.errors import QuotaError


class TestRelativeError:
    def test_written_example(self) -> None:
        x = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
        assert relative_error(x + torch.tensor([[0.0, 0.6], [0.8, 0.0]]), x) == pytest.approx(1 / 5)

    def test_norms_are_not_squared(self) -> None:
        x = torch.ones(4, 8)
        assert relative_error(1.1 * x, x) == pytest.approx(0.1, rel=1e-4)

    def test_zero_input_does_not_divide_by_zero(self) -> None:
        assert relative_error(torch.full((1, 1), 1e-6), torch.zeros(1, 1)) == pytest.approx(1)

    def test_bfloat16_is_measured_in_full(self) -> None:
        x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
        xq = x + 0.01 * x
        expected = (xq.double() - x.double()).norm() / x.double().norm()
        assert relative_error(xq, x) == pytest.approx(float(expected), rel=1e-6)

    def test_shapes_must_agree(self) -> None:
        with pytest.raises(QuotaError, match=r"\(2, 3\) and \(1, 3\)"):
            relative_error(torch.zeros(2, 3), torch.zeros(1, 3))


class TestTokenError:
    def test_a_token_of_large_norm_hides_nobody(self) -> None:
        x = torch.tensor([[300.0, 400.0], [3.0, 4.0], [0.0, 1.0]])
        xq = x + torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.1, 0.0]])
        assert token_error(xq, x) == pytest.approx((0 + 1 / 5 + 0.1) / 3, rel=1e-5)
        assert relative_error(xq, x) < 0.01

    def test_tokens_of_one_norm_and_error_have_the_published_one(self) -> None:
        x = torch.nn.functional.normalize(torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
        assert token_error(1.1 * x, x) == pytest.approx(relative_error(1.1 * x, x), rel=1e-4)

    def test_shapes_must_agree(self) -> None:
        with pytest.raises(QuotaError, match=r"\(2, 3\) and \(1, 3\)"):
            token_error(torch.zeros(2, 3), torch.zeros(1, 3))


class TestSensitivity:
    @pytest.mark.parametrize(
        ("errors", "expected"), [([0.3], 0.3), ([0.1, 9.0, 0.2], 0.2), ([0.1, 0.2, 0.4, 9.0], 0.3)]
    )
    def test_is_the_median(self, errors: list[float], expected: float) -> None:
        assert sensitivity(errors) == pytest.approx(expected)

    def test_takes_a_tensor(self) -> None:
        assert sensitivity(torch.tensor([1.0, 2.0, 3.0])) == 2.0

    @pytest.mark.parametrize("errors", [[], [0.1, math.nan], [math.inf]], ids=["none", "nan", "infinite"])
    def test_refuses(self, errors: list[float]) -> None:
        with pytest.raises(QuotaError):
            sensitivity(errors)


def test_concentration_is_the_share_of_the_top_ten() -> None:
    visual = torch.tensor([[False] + [True] * 20 + [False]])
    observation = Observation(text=~visual, visual=visual, keys=torch.ones_like(visual))
    # Two text tokens: the sums are twice the share of one.
    observation.inter = torch.tensor([[9.0] + [0.08] * 10 + [0.02] * 10 + [9.0]])
    assert attention_concentration(observation, visual) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        pytest.param([[1.0, 0.0], [2.0, 0.0], [0.5, 0.0]], 1.0, id="parallel"),
        pytest.param([[1.0, 0.0], [0.0, 3.0]], 0.0, id="orthogonal"),
        pytest.param([[1.0, 0.0], [-1.0, 0.0]], -1.0, id="opposite"),
        pytest.param([[1.0, 2.0]], 1.0, id="one token"),
    ],
)
def test_median_cosine(tokens: list[list[float]], expected: float) -> None:
    assert median_cosine(torch.tensor(tokens)) == pytest.approx(expected)
