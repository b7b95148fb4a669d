"""Scores of visual tokens and the choice among them: the plain loops, and the C++ kernels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.instruction_sets import HERE, every_isa, needs_library, using
from torch import Tensor

from quota.errors import QuotaError
from quota.ops.choice import Cut, cut, places
from quota.ops.cpu import tokens as ranking
from quota.ops.interface import InputSpec
from quota.ops.reference import tokens as reference_peaks
from quota.ops.reference.tokens import attention_mass, attention_mass_naive, cosines, novelty, novelty_naive


def operands(batch: int, tokens: int, width: int, ties: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, what they receive and which are valid; padding holds what may not be read."""
    draw = torch.Generator().manual_seed(tokens)
    hidden, weight = torch.randn(batch, tokens, width, generator=draw), torch.rand(batch, tokens, generator=draw)
    if ties:
        weight, hidden = (weight * 4).round(), hidden.sign()
    valid = torch.rand(batch, tokens, generator=draw) < 0.8
    hidden[~valid] = weight[~valid] = torch.nan
    return hidden, weight, valid


def cosines_of(hidden: Tensor) -> Tensor:
    return cosines(hidden @ hidden.transpose(1, 2), hidden.norm(dim=-1), slice(0, hidden.shape[1]))


@pytest.mark.parametrize("ties", [False, True], ids=["all different", "ties"])
def test_novelty_is_the_plain_loop(ties: bool) -> None:
    hidden, weight, valid = operands(3, 20, 8, ties)
    found = novelty(cosines_of(hidden), places(weight, valid), slice(0, 20))
    torch.testing.assert_close(found[valid], novelty_naive(hidden, weight, valid)[valid], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width", [2, 8])
def test_mass_is_the_plain_loop(width: int) -> None:
    hidden, weight, valid = operands(3, 20, width)
    found = attention_mass(cosines_of(hidden), weight, valid)
    torch.testing.assert_close(found[valid], attention_mass_naive(hidden, weight, valid)[valid], rtol=1e-4, atol=1e-5)


@every_isa
@pytest.mark.parametrize("ties", [False, True], ids=["all different", "ties"])
@pytest.mark.parametrize(("tokens", "width"), [(1, 8), (5, 21), (16, 16), (144, 21), (333, 40), (37, 1100)])
def test_the_kernel_equals_the_reference(tokens: int, width: int, ties: bool, isa: str) -> None:
    hidden, weight, valid = operands(2, tokens, width, ties)
    with using(isa):
        found = ranking.peaks(hidden, weight, valid)
    torch.testing.assert_close(found, reference_peaks.peaks(hidden, weight, valid), rtol=1e-5, atol=1e-6)
    assert not found[~valid].any()


@every_isa
def test_an_image_of_very_many_tokens_is_done_in_parts(isa: str) -> None:
    hidden, weight, valid = operands(1, 4099, 5)
    with using(isa):
        found = ranking.peaks(hidden, weight, valid)
    torch.testing.assert_close(found, reference_peaks.peaks(hidden, weight, valid), rtol=1e-4, atol=1e-6)


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, list[int], Tensor, Tensor, Tensor]:
    """Two samples of 12 places, some of them of up to 3 images, with ties, infinities and padding."""
    images = draw(st.integers(0, 3))
    places = torch.tensor(draw(st.permutations(range(24))))[: images * 6].view(images, 6).sort(dim=1).values
    number = st.sampled_from([-math.inf, -1.0, 0.0, -0.0, 1.0, 2.0, math.inf])
    score = torch.tensor(draw(st.lists(number, min_size=6 * images, max_size=6 * images))).view(images, 6)
    valid = torch.tensor(draw(st.lists(st.booleans(), min_size=6 * images, max_size=6 * images)))
    valid = valid.bool().view(images, 6)
    others = torch.tensor(draw(st.lists(st.booleans(), min_size=24, max_size=24)))
    others[places.flatten()] = False
    counts = draw(st.lists(st.integers(0, 9), min_size=images, max_size=images))
    return score.masked_fill(~valid, torch.nan), counts, valid, places, others.view(2, 12)


@needs_library
@given(batches())
def test_a_cut_is_that_of_the_reference(given: tuple[Tensor, list[int], Tensor, Tensor, Tensor]) -> None:
    found, expected = ranking.cut(*given), cut(*given)
    assert torch.equal(found.kept, expected.kept)
    assert torch.equal(found.slots, expected.slots)
    assert torch.equal(found.filled, expected.filled)


@needs_library
@pytest.mark.parametrize("cut", [ranking.cut, cut], ids=["cpu", "reference"])
def test_a_score_that_is_not_a_number_is_refused(cut: Callable[..., Cut]) -> None:
    with pytest.raises(QuotaError, match="score is NaN"):
        cut(torch.tensor([[1.0, torch.nan]]), [1], torch.ones(1, 2) > 0, torch.tensor([[0, 1]]), torch.zeros(1, 2) > 0)


@every_isa
def test_what_is_not_a_number_is_not_hidden(isa: str) -> None:
    hidden = torch.randn(1, 40, 8, generator=torch.Generator().manual_seed(0))
    hidden[0, 7] = torch.nan
    weight, valid = torch.ones(1, 40), torch.ones(1, 40, dtype=torch.bool)
    with using(isa):
        found = ranking.peaks(hidden, weight, valid)
    assert found.isnan().all()


@every_isa
def test_the_number_of_threads_changes_nothing(isa: str) -> None:
    given = operands(3, 200, 16)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            with using(isa):
                found.append(ranking.peaks(*given))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=HERE)
def isa(request: pytest.FixtureRequest) -> Iterator[None]:
    with using(request.param):
        yield


@needs_library
@pytest.mark.usefixtures("isa")
class TestActivationError:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize(
        ("width", "group", "block"),
        [(8, 8, 8), (24, 8, 0), (80, 16, 16), (192, 64, 64), (256, 32, 128), (2048, 64, 64)],
    )
    @pytest.mark.parametrize("bits", [4, 8])
    def test_equals_the_reference(self, width: int, group: int, block: int, bits: int, dtype: torch.dtype) -> None:
        x = (random(7, 2 * width) * 3)[:, :width].to(dtype)
        x[3, width // 2] = 1000
        expected = reference_peaks.activation_error(x, InputSpec(width, bits, group, block))
        actual = ranking.activation_error(x, InputSpec(width, bits, group, block))
        # Behind a rotation that adds in another order, a number may be rounded to the other side.
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-3 if block else 1e-5)

    @pytest.mark.parametrize("value", [0.0, -3.0, 1e-40], ids=str)
    def test_rows_without_spread(self, value: float) -> None:
        x, plain = torch.full((2, 64), value), InputSpec(64, 4, 64, 0)
        torch.testing.assert_close(ranking.activation_error(x, plain), reference_peaks.activation_error(x, plain))

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
    def test_what_is_not_a_number_is_not_hidden(self, value: float) -> None:
        x = random(3, 128)
        x[1, 77] = value
        assert ranking.activation_error(x, InputSpec(128, 4, 64, 64)).isnan().tolist() == [False, True, False]

    def test_sixteen_bits_and_no_rows(self) -> None:
        assert ranking.activation_error(random(3, 64), InputSpec(64, 16, 64, 64)).tolist() == [0.0] * 3
        assert ranking.activation_error(random(0, 64), InputSpec(64, 4, 64, 64)).shape == (0,)
