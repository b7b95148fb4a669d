"""Scores of visual tokens and the choice among them: the plain loops, and the C++ kernels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from support.instruction_sets import HERE, every_isa, needs_library, using
from torch import Tensor

from quota.errors import QuotaError
from quota.ops.choice import Cut, cut
from quota.ops.cpu import tokens as ranking
from quota.ops.interface import InputSpec
from quota.ops.reference import tokens as reference
from quota.ops.reference.tokens import information_naive
from quota.ops.triton import TritonBackend

NOISE = 0.05


def operands(batch: int, tokens: int, width: int, ties: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, which are valid, and how many are chosen; padding holds what may not be read."""
    draw = torch.Generator().manual_seed(tokens)
    hidden = torch.randn(batch, tokens, width, generator=draw)
    if ties:
        hidden = hidden[:, torch.randint(tokens, (tokens,), generator=draw)].sign()
    valid = torch.rand(batch, tokens, generator=draw) < 0.8
    hidden[~valid] = torch.nan
    return hidden, valid, torch.arange(batch) * tokens + tokens // 3


def order_of(score: Tensor, valid: Tensor) -> Tensor:
    """The valid tokens of one image, the highest score first."""
    places = valid.nonzero().flatten()
    return places[score[places].sort(descending=True, stable=True).indices]


def check(score: Tensor, hidden: Tensor, valid: Tensor, counts: Tensor, noise: float) -> None:
    """The highest scores are a choice of the best token each time, up to rounding, and all are what is left.

    Each variance by its definition, in float64: near ties may be chosen in any order.
    """
    assert not score[~valid].any()
    for own, row, there, count in zip(hidden.double(), score, valid, counts.tolist(), strict=True):
        order = order_of(row, there)
        products, found = own[order] @ own[order].T, row[order].double()
        spread, left = noise * products.diagonal().mean(), products.diagonal()
        near = 1e-5 * float(left.max()) if len(order) else 0.0
        for step in range(min(count, len(order))):
            assert abs(float(found[step] - left[step])) <= near
            assert float(left[step]) >= (1 - 1e-4) * float(left[step:].max()) - near
            shared = products[: step + 1]
            seen = shared[:, : step + 1] + spread * torch.eye(step + 1)
            # Zeros, where nothing is left to choose between, have no inverse.
            left = products.diagonal() - (shared * (torch.linalg.pinv(seen, hermitian=True) @ shared)).sum(dim=0)
        torch.testing.assert_close(found[count:], left[count:], rtol=0, atol=near)


@pytest.mark.parametrize("ties", [False, True], ids=["all different", "ties"])
@pytest.mark.parametrize("noise", [0.01, 1.0])
def test_the_reference_is_the_plain_loop(noise: float, ties: bool) -> None:
    hidden, valid, counts = operands(3, 20, 8, ties)
    found, expected = (job(hidden, valid, counts, noise) for job in (reference.information, information_naive))
    check(found, hidden, valid, counts, noise)
    check(expected, hidden, valid, counts, noise)
    if not ties:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@every_isa
@pytest.mark.parametrize("ties", [False, True], ids=["all different", "ties"])
@pytest.mark.parametrize(("tokens", "width"), [(1, 8), (5, 21), (64, 16), (144, 21), (333, 40), (37, 1100)])
def test_the_kernel_equals_the_reference(tokens: int, width: int, ties: bool, isa: str) -> None:
    hidden, valid, counts = operands(2, tokens, width, ties)
    with using(isa):
        found = ranking.information(hidden, valid, counts, NOISE)
    check(found, hidden, valid, counts, NOISE)
    if not ties:
        expected = reference.information(hidden, valid, counts, NOISE)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * width)


@pytest.mark.parametrize("ties", [False, True], ids=["all different", "ties"])
@pytest.mark.parametrize(("tokens", "width"), [(1, 8), (5, 21), (64, 16), (144, 21)])
def test_so_does_the_gpus(interpret: Callable[..., Tensor], tokens: int, width: int, ties: bool) -> None:
    hidden, valid, counts = operands(2, tokens, width, ties)
    found = interpret(TritonBackend().information, hidden, valid, counts, NOISE)
    check(found, hidden, valid, counts, NOISE)
    if not ties:
        expected = reference.information(hidden, valid, counts, NOISE)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * width)


def test_there_too_numbers_without_a_finite_sum_are_none(interpret: Callable[..., Tensor]) -> None:
    hidden = torch.randn(2, 9, 4)
    hidden[0, 3] = 1e30
    valid, counts = torch.ones(2, 9, dtype=torch.bool), torch.tensor([3, 3])
    found = interpret(TritonBackend().information, hidden, valid, counts, NOISE)
    assert found[0].isnan().all() and found[1].isfinite().all()


@every_isa
def test_an_image_of_very_many_tokens_is_done_row_by_row(isa: str) -> None:
    hidden, valid, _ = operands(1, 4099, 5)
    counts = torch.tensor([40])
    with using(isa):
        found = ranking.information(hidden, valid, counts, NOISE)
        # What is not padding alone, and so all its products at once.
        alone = ranking.information(hidden[:, valid[0]], valid[:, valid[0]], counts, NOISE)
    torch.testing.assert_close(found, reference.information(hidden, valid, counts, NOISE), rtol=1e-4, atol=1e-5)
    assert torch.equal(found[:, valid[0]], alone)


@st.composite
def images(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, float]:
    """Up to 3 images of up to 10 tokens with few different numbers: zeros, equal tokens, an outlier, padding."""
    batch, tokens, width = draw(st.integers(1, 3)), draw(st.integers(1, 10)), draw(st.integers(1, 4))
    size = batch * tokens
    number = st.sampled_from([0.0, 1.0, -1.0, 0.5, 3.0, 100.0])
    hidden = torch.tensor(draw(st.lists(number, min_size=size * width, max_size=size * width)))
    valid = torch.tensor(draw(st.lists(st.booleans(), min_size=size, max_size=size))).view(batch, tokens)
    counts = torch.tensor(draw(st.lists(st.integers(0, 12), min_size=batch, max_size=batch)))
    hidden = hidden.view(batch, tokens, width).masked_fill_(~valid[..., None], draw(st.sampled_from([math.nan, 1e30])))
    return hidden, valid, counts, draw(st.sampled_from([0.01, 0.1, 1.0]))


JOBS = pytest.mark.parametrize("job", [ranking.information, reference.information], ids=["cpu", "reference"])


@needs_library
@JOBS
@given(given=images())
def test_the_highest_scores_are_the_best_each_time(
    job: Callable[..., Tensor], given: tuple[Tensor, Tensor, Tensor, float]
) -> None:
    check(job(*given), *given)


@needs_library
@JOBS
@given(given=images(), fewer=st.integers(0, 9))
def test_what_is_chosen_first_stays_chosen(
    job: Callable[..., Tensor], given: tuple[Tensor, Tensor, Tensor, float], fewer: int
) -> None:
    """And its scores stay the same, bit for bit; those of others never rise."""
    hidden, valid, counts, noise = given
    less = (counts - fewer).clamp(min=0)
    found, before = job(hidden, valid, counts, noise), job(hidden, valid, less, noise)
    for row in range(len(valid)):
        chosen = order_of(found[row], valid[row])[: less[row]]
        assert torch.equal(order_of(before[row], valid[row])[: less[row]], chosen)
        assert torch.equal(before[row, chosen], found[row, chosen])
    assert (found <= before).all()


@needs_library
@JOBS
@given(given=images(), power=st.integers(-20, 20))
def test_a_power_of_two_scales_all_scores(
    job: Callable[..., Tensor], given: tuple[Tensor, Tensor, Tensor, float], power: int
) -> None:
    hidden, valid, counts, noise = given
    # Above what is taken for nothing.
    assume(not (hidden == 0).all(dim=2).any())
    assert torch.equal(job(hidden * 2.0**power, valid, counts, noise), job(*given) * 4.0**power)


@needs_library
@given(given=images(), data=st.data())
def test_where_padding_stands_and_who_else_is_there_changes_no_bit(
    given: tuple[Tensor, Tensor, Tensor, float], data: st.DataObject
) -> None:
    hidden, valid, counts, noise = given
    found = ranking.information(*given)
    for row, there in enumerate(valid):
        own = hidden[row, there]
        alone = ranking.information(own[None], there[there][None], counts[row : row + 1], noise)
        assert torch.equal(found[row, there], alone[0])
        # The same tokens in the same order, spread over more places.
        places = sorted(data.draw(st.permutations(range(len(own) + 7)))[: len(own)])
        wider, filled = torch.full((1, len(own) + 7, own.shape[1]), math.inf), torch.zeros(1, len(own) + 7).bool()
        wider[0, places], filled[0, places] = own, True
        again = ranking.information(wider, filled, counts[row : row + 1], noise)
        assert torch.equal(again[filled], alone[0])


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
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e30], ids=str)
@pytest.mark.parametrize("count", [0, 13, 40])
def test_what_has_no_finite_length_is_not_hidden(count: int, value: float, isa: str) -> None:
    hidden = random(2, 40, 8)
    hidden[0, 7, 3] = value
    valid, counts = torch.ones(2, 40, dtype=torch.bool), torch.tensor([count, 5])
    with using(isa):
        found = ranking.information(hidden, valid, counts, NOISE)
        assert found[0].isnan().all() and not found[1].isnan().any()
        with pytest.raises(QuotaError, match="score is NaN"):
            ranking.cut(found, counts.tolist(), valid, torch.arange(80).view(2, 40), torch.zeros(2, 40).bool())
    expected = reference.information(hidden, valid, counts, NOISE)
    assert expected[0].isnan().all() and not expected[1].isnan().any()


@every_isa
@pytest.mark.parametrize("noise", [0.0, 1e-9, NOISE])
@pytest.mark.parametrize("value", [0.0, 1e-40, 1e-20, 1.0, 1e15])
def test_tokens_without_any_difference_are_chosen_in_order(value: float, noise: float, isa: str) -> None:
    hidden, valid, counts = torch.full((1, 70, 8), value), torch.ones(1, 70, dtype=torch.bool), torch.tensor([20])
    with using(isa):
        found = ranking.information(hidden, valid, counts, noise)
    assert not found.isnan().any()
    if noise == NOISE:
        assert order_of(found[0], valid[0])[:20].tolist() == list(range(20))


@every_isa
def test_the_number_of_threads_changes_nothing(isa: str) -> None:
    given = operands(3, 200, 16)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            with using(isa):
                found.append(ranking.information(*given, NOISE))
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
        expected = reference.activation_error(x, InputSpec(width, bits, group, block))
        actual = ranking.activation_error(x, InputSpec(width, bits, group, block))
        # Behind a rotation that adds in another order, a number may be rounded to the other side.
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-3 if block else 1e-5)

    @pytest.mark.parametrize("value", [0.0, -3.0, 1e-40], ids=str)
    def test_rows_without_spread(self, value: float) -> None:
        x, plain = torch.full((2, 64), value), InputSpec(64, 4, 64, 0)
        torch.testing.assert_close(ranking.activation_error(x, plain), reference.activation_error(x, plain))

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
    def test_what_is_not_a_number_is_not_hidden(self, value: float) -> None:
        x = random(3, 128)
        x[1, 77] = value
        assert ranking.activation_error(x, InputSpec(128, 4, 64, 64)).isnan().tolist() == [False, True, False]

    def test_sixteen_bits_and_no_rows(self) -> None:
        assert ranking.activation_error(random(3, 64), InputSpec(64, 16, 64, 64)).tolist() == [0.0] * 3
        assert ranking.activation_error(random(0, 64), InputSpec(64, 4, 64, 64)).shape == (0,)
