"""The triton backend against the reference, its kernels run by triton's interpreter; what GPUs get is in
`test_triton_compile.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.operands import ROWS, make_weight
from torch import Tensor

from quota import ops
from quota.errors import QuotaError
from quota.ops.interface import InputSpec, LinearSpec
from quota.ops.reference import ReferenceBackend
from quota.ops.reference.backend import finish
from quota.ops.triton import TritonBackend
from quota.ops.triton.alarm import Alarm
from quota.quantization.linear import W4A4Linear
from quota.scheme import QuantizationScheme

pytest.importorskip("triton")

REFERENCE = ReferenceBackend()
TRITON = TritonBackend()
Call = Callable[..., Any]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# Beside `ROWS`, widths that are no multiple of 64 or of a tile, and a row wider than one.
HARD = torch.tensor([1, 0, 1e4, 1e-40, 1e-38, 1e37])[:, None]
WIDE = {width: random(6, width) * HARD for width in (8, 40, 200, 4104)}


@given(
    st.sampled_from([0, 1, 2, 5, 19]),
    st.sampled_from([0, 1, 3, 8, 33]),
    st.sampled_from([(64, 64), (128, 32), (40, 8), (512, 256), (1152, 128), (2064, 16)]),
    st.sampled_from([4, 8]),
    st.integers(0, 2**31 - 1),
)
@settings(max_examples=25, deadline=None)
def test_sums_equal_the_references(
    interpret: Call, rows: int, outputs: int, sizes: tuple[int, int], bits: int, seed: int
) -> None:
    columns, group = sizes
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-128, 128, (rows, columns), dtype=torch.int8, generator=generator)
    weight = make_weight(outputs, columns, bits, group=group, seed=seed)
    assert torch.equal(interpret(TRITON.sums, values, weight), REFERENCE.sums(values, weight))


@pytest.mark.parametrize(("bits", "value"), [(4, -127), (8, 127)], ids=["W4", "W8"])
def test_the_largest_sums_are_exact(interpret: Call, bits: int, value: int) -> None:
    weight = make_weight(3, 131_064, bits)
    weight.packed.zero_()
    if bits == 4:
        weight.step.fill_(16)
    sums = interpret(TRITON.sums, torch.full((1, 131_064), value, dtype=torch.int8), weight)
    assert sums.tolist() == [[-128 * value * 131_064] * 3]


@pytest.mark.parametrize("x", [*ROWS.values(), *WIDE.values()], ids=[*ROWS, *map(str, WIDE)])
@pytest.mark.parametrize("bits", [4, 8])
def test_activations_are_quantised_bit_for_bit(interpret: Call, x: Tensor, bits: int) -> None:
    from quota.ops.triton.activations import arrange, quantize

    for group in {32, 64} if x.shape[1] == 128 else {x.shape[1] & -x.shape[1]}:
        inputs = InputSpec(x.shape[1], bits, group, 0)
        values, scale = REFERENCE.quantize(x, inputs)
        found, found_scale = interpret(TRITON.quantize, x, inputs)
        assert torch.equal(found, values)
        assert torch.equal(found_scale, scale)
        apart, found_scale = interpret(quantize, x, inputs, 2)
        assert torch.equal(apart, arrange(values, 2).values)
        assert torch.equal(found_scale, scale)


@pytest.mark.parametrize("bits", [4, 8])
def test_half_types_are_read_as_they_are(interpret: Call, bits: int) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        x, inputs = random(5, 128).to(dtype), InputSpec(128, bits, 64, 0)
        for found, expected in zip(interpret(TRITON.quantize, x, inputs), REFERENCE.quantize(x, inputs), strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("hadamard", [0, 32], ids=["not rotated", "rotated"])
@pytest.mark.parametrize(("bits", "activation_bits"), [(4, 4), (4, 8), (8, 4), (8, 8)], ids=lambda bits: str(bits))
@pytest.mark.parametrize("x", ROWS.values(), ids=ROWS.keys())
def test_linear_is_the_reference(interpret: Call, x: Tensor, bits: int, activation_bits: int, hadamard: int) -> None:
    weight = make_weight(21, 128, bits, activation_bits, hadamard=hadamard)
    [result] = interpret(TRITON.linear, x, [weight])
    [expected] = REFERENCE.linear(x, [weight])
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-5)
    assert hadamard or torch.equal(result, expected)
    # A rotation adds in another order, but nothing behind it does.
    values, scale = interpret(TRITON.quantize, x, weight.spec.inputs)
    assert torch.equal(result, finish(REFERENCE.sums(values, weight), scale, weight))


@pytest.mark.parametrize("x", WIDE.values(), ids=map(str, WIDE))
def test_linear_of_any_width_is_the_reference(interpret: Call, x: Tensor) -> None:
    for bits, activation_bits in ((4, 4), (8, 8)):
        weight = make_weight(21, x.shape[1], bits, activation_bits)
        [result] = interpret(TRITON.linear, x, [weight])
        assert torch.equal(result, REFERENCE.linear(x, [weight])[0])


@pytest.mark.parametrize(("x_group", "w_group"), [(64, 32), (16, 64), (128, 8)])
def test_groups_of_activations_and_weights_may_differ(interpret: Call, x_group: int, w_group: int) -> None:
    weight = make_weight(21, 128, group=w_group, activation_group=x_group)
    [result] = interpret(TRITON.linear, ROWS["random"], [weight])
    assert torch.equal(result, REFERENCE.linear(ROWS["random"], [weight])[0])


def test_weights_that_read_the_same_tensor_keep_apart(interpret: Call) -> None:
    weights = [make_weight(rows, 128, seed=rows) for rows in (70, 0, 1, 33)]
    # Not of the launch of those above: no bias, another group, another width.
    weights += [make_weight(5, 128), make_weight(40, 128, group=16), make_weight(3, 128, bits=8)]
    weights[4].bias = None
    for x in (random(5, 128), random(70, 128), random(0, 128)):
        results, expected = interpret(TRITON.linear, x, weights), REFERENCE.linear(x, weights)
        assert all(torch.equal(*pair) for pair in zip(results, expected, strict=True))


def test_weights_that_read_it_differently_are_refused() -> None:
    weights = [make_weight(8, 128, activation_bits=bits) for bits in (4, 8)]
    with pytest.raises(QuotaError, match="cannot share"):
        TRITON.linear(random(1, 128), weights)


def test_steps_are_turned_once() -> None:
    from quota.ops.triton.linear import _steps

    weight = make_weight(21, 128)
    assert torch.equal(_steps(weight), weight.step.T)
    assert _steps(weight) is _steps(weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_results_have_the_type_of_the_activations(interpret: Call, dtype: torch.dtype) -> None:
    x, weight = ROWS["random"].to(dtype), make_weight(21, 128)
    [result] = interpret(TRITON.linear, x, [weight])
    assert result.dtype == dtype
    # The interpreter cuts the bits off that do not fit bfloat16, in place of rounding: one unit in the last place.
    torch.testing.assert_close(result, REFERENCE.linear(x, [weight])[0], rtol=2**-7, atol=1e-5)


def test_a_row_does_not_depend_on_the_others_or_on_the_tile(interpret: Call) -> None:
    x, weight = random(70, 128), make_weight(21, 128, hadamard=64)
    [whole] = interpret(TRITON.linear, x, [weight])
    for rows in (slice(0, 1), slice(15, 40), slice(69, 70)):
        assert torch.equal(interpret(TRITON.linear, x[rows], [weight])[0], whole[rows])


@pytest.mark.parametrize(
    ("width", "group", "block"), [(8, 8, 8), (24, 8, 0), (192, 64, 64), (256, 32, 128), (4104, 8, 8)]
)
@pytest.mark.parametrize("bits", [4, 8])
def test_the_error_of_activations_is_the_references(
    interpret: Call, width: int, group: int, block: int, bits: int
) -> None:
    x = random(7, width) * 3
    x[1:4] = torch.tensor([0, -2.5, 1e-40])[:, None]
    x[5, width // 2] = 1e4
    inputs = InputSpec(width, bits, group, block)
    found, expected = interpret(TRITON.activation_error, x, inputs), REFERENCE.activation_error(x, inputs)
    # s |v - t| here, |s v - x| there: apart by what float32 loses of the largest number.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-3)
    torch.testing.assert_close(found[[0, 1, 3, 4, 6]], expected[[0, 1, 3, 4, 6]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_the_error_of_what_is_not_a_number_is_not_hidden(interpret: Call, value: float) -> None:
    x = random(3, 128)
    x[1, 77] = value
    assert interpret(TRITON.activation_error, x, InputSpec(128, 4, 64, 64)).isnan().tolist() == [False, True, False]


def test_sixteen_bits_have_no_error() -> None:
    assert TRITON.activation_error(random(3, 64), InputSpec(64, 16, 64, 64)).tolist() == [0.0] * 3


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_activations_that_are_not_numbers_are_an_error_once(interpret: Call, value: float) -> None:
    x, weight = torch.zeros(3, 128), make_weight(21, 128)
    x[1, 70] = value
    with pytest.raises(QuotaError, match="activations hold NaN or infinity"):
        interpret(TRITON.linear, x, [weight])
    with pytest.raises(QuotaError, match="activations hold NaN or infinity"):
        interpret(TRITON.quantize, x, weight.spec.inputs)
    assert interpret(TRITON.linear, ROWS["random"], [weight])[0].isfinite().all()


def test_a_rotation_beyond_float32_is_an_error(interpret: Call) -> None:
    with pytest.raises(QuotaError, match="activations hold NaN or infinity"):
        interpret(TRITON.quantize, torch.full((1, 128), 3e38), InputSpec(128, 4, 64, 64))


def test_a_layer_runs_on_it_when_it_is_asked_for(interpret: Call) -> None:
    layer = W4A4Linear.from_linear(torch.nn.Linear(192, 24), QuantizationScheme(weight_rounding="rtn"))
    x = random(2, 5, 192)
    with ops.use("reference"):
        expected = layer(x)
    result, backends = interpret(_run_layer, layer, x)
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-5)
    assert backends == {"linear": ["triton"]}


def _run_layer(layer: W4A4Linear, x: Tensor) -> tuple[Tensor, dict[str, list[str]]]:
    with ops.use("triton"), ops.record() as usage:
        return layer(x), usage.backends()


def test_word_that_comes_after_a_call_returned_stops_the_next_one() -> None:
    alarm = Alarm("trouble")
    with alarm.listen() as word:
        pass
    word.fill_(1)
    with pytest.raises(QuotaError, match="trouble"), alarm.listen():
        pytest.fail("the next call was let through")
    with alarm.listen():
        pass


def test_why_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA device" in str(TRITON.why_not())
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert TRITON.why_not() is None
    monkeypatch.setattr("quota.ops.triton.find_spec", lambda name: None)
    assert "not installed" in str(TRITON.why_not())


# Rows, bits and group of weights; columns, bits, group and rotation of inputs.
LAYERS = {
    "4 and 8 bits": (8, 4, 64, 64, 16, 64, 0),
    "multiples of 8": (8, 4, 4, 4, 4, 4, 0),
    "in groups of 4": (8, 4, 4, 64, 4, 64, 0),
    "do not fit 32 bits": (8, 4, 64, 131_072, 4, 64, 0),
    "rotates": (8, 4, 64, 128, 4, 64, 128),
}


@pytest.mark.parametrize(("reason", "layer"), LAYERS.items(), ids=LAYERS)
def test_layers_it_lacks(reason: str, layer: tuple[int, ...]) -> None:
    rows, bits, group, *inputs = layer
    assert reason in str(TRITON.lacks(LinearSpec(rows, bits, group, InputSpec(*inputs))))
    assert TRITON.lacks(LinearSpec(8, 4, 64, InputSpec(64, 8, 64, 64))) is None
