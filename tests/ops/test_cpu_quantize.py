"""Values of activations from the C++ kernels: the oracle's exactly without a rotation, alike on all paths with one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.instruction_sets import HERE, every_isa, needs_library, using
from torch import Tensor

from quota.errors import QuotaError
from quota.ops.activations import dequantize_activation, quantize_activation
from quota.ops.cpu import linear
from quota.ops.cpu import tokens as visual
from quota.ops.hadamard import block_hadamard, block_hadamard_naive
from quota.ops.interface import InputSpec

pytestmark = needs_library

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
every_type = pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES.keys())
both_bits = pytest.mark.parametrize("bits", [4, 8], ids=["A4", "A8"])


def tokens(rows: int, columns: int, seed: int = 1) -> Tensor:
    """Like activations: channels of very different size."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.rand(columns, generator=generator).pow(4) * 10
    return torch.randn(rows, columns, generator=generator) * sizes


def assert_quantized_alike(x: Tensor, group: int, bits: int = 4) -> None:
    values, scale = linear.quantize(x, InputSpec(x.shape[1], bits, group, 0))
    expected, expected_scale = quantize_activation(x, bits, group)
    assert torch.equal(scale, expected_scale)
    assert torch.equal(values, expected)


ROWS = {
    "zeros": torch.zeros(2, 256),
    "negative zeros": torch.full((2, 256), -0.0),
    "constant rows": torch.tensor([[2.5], [-1e-3]]).repeat(1, 256),
    "one outlier": tokens(2, 256).index_fill(1, torch.tensor(9), 1e4),
    "one negative outlier": tokens(2, 256).index_fill(1, torch.tensor(77), -1e4),
    "one number": torch.zeros(2, 256).index_fill(1, torch.tensor(255), 3.0),
    "all above zero": torch.linspace(100, 101, 512).reshape(2, 256),
    "subnormal": torch.full((2, 256), 1e-40),
    "almost subnormal": torch.linspace(-1, 1, 512).reshape(2, 256) * 2e-36,
    "as large as float32 holds": torch.linspace(-1, 1, 512).reshape(2, 256) * 3.4e38,
    "one token": tokens(1, 256),
    "no token": torch.zeros(0, 256),
}


@every_isa
@both_bits
@pytest.mark.parametrize("group", [8, 16, 32, 64, 128, 256])
@pytest.mark.parametrize("x", ROWS.values(), ids=ROWS.keys())
def test_values_of_adversarial_rows_are_the_oracles(isa: str, x: Tensor, group: int, bits: int) -> None:
    with using(isa):
        assert_quantized_alike(x, group, bits)


@given(
    st.integers(0, 2**31 - 1),
    st.sampled_from([1, 3, 17]),
    st.sampled_from([(8, 8), (40, 8), (48, 16), (96, 32), (64, 64), (192, 64), (256, 256), (1152, 64), (704, 32)]),
    st.floats(-37, 30),
    st.sampled_from(list(TYPES)),
    st.sampled_from([4, 8]),
)
@settings(max_examples=100, deadline=None)
def test_values_and_scales_are_the_oracles(
    seed: int, rows: int, sizes: tuple[int, int], exponent: float, dtype: str, bits: int
) -> None:
    columns, group = sizes
    x = tokens(rows, columns, seed) * 10**exponent
    x = x.clamp(-6e4, 6e4).to(TYPES[dtype]) if dtype == "float16" else x.to(TYPES[dtype])
    for isa in HERE:
        with using(isa):
            assert_quantized_alike(x, group, bits)


@every_isa
@both_bits
def test_numbers_next_to_a_tie_fall_on_the_oracles_side(isa: str, bits: int) -> None:
    # The last bit of every product decides there: to fuse two of them gets some wrong.
    scale = torch.rand(4000, 1, generator=torch.Generator().manual_seed(3)) + 0.5
    ties = (torch.arange(60) // 4 + 0.5) * 8 * scale
    ties[:, 0::4] = ties[:, 0::4].nextafter(torch.tensor(torch.inf))
    ties[:, 1::4] = ties[:, 1::4].nextafter(torch.tensor(-torch.inf))
    x = torch.cat((torch.zeros(4000, 3), 122 * scale, ties), dim=1)
    with using(isa):
        assert_quantized_alike(x, 64, bits)
        assert_quantized_alike(-x, 64, bits)
        assert_quantized_alike(x - 56 * scale, 8, bits)


@every_isa
def test_every_float16_is_read_as_it_is(isa: str) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    finite = every[every.isfinite()]
    with using(isa):
        assert_quantized_alike(finite.reshape(-1, 8), 8)
        assert_quantized_alike(finite.reshape(-1, 64), 64)


@both_bits
@every_type
@pytest.mark.parametrize("rows", [1, 5, 33])
@pytest.mark.parametrize("hadamard", [2, 4, 8, 16, 32, 64, 128, 256])
def test_rotated_values_are_alike_on_all_paths_and_those_of_the_rotated_row(
    hadamard: int, rows: int, dtype: torch.dtype, bits: int
) -> None:
    x, inputs = tokens(rows, 768).to(dtype), InputSpec(768, bits, 64, hadamard)
    # The fast transform adds as the kernels do, so that its values are theirs.
    expected, expected_scale = quantize_activation(block_hadamard_naive(x.float(), hadamard), bits, 64)
    for isa in HERE:
        with using(isa):
            values, scale = linear.quantize(x, inputs)
        assert torch.equal(values, expected)
        assert torch.equal(scale, expected_scale)


def test_rotated_values_stand_for_the_rotated_row() -> None:
    x = tokens(5, 512)
    oracle = block_hadamard(x, 64)
    seen = dequantize_activation(*linear.quantize(x, InputSpec(512, 4, 64, 64)))
    expected = dequantize_activation(*quantize_activation(oracle, 4, 64))
    assert (seen - oracle).norm() < 1.01 * (expected - oracle).norm()


@every_isa
@every_type
@both_bits
@pytest.mark.parametrize("hadamard", [0, 64])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("place", [0, 63, 190])
def test_what_is_not_finite_raises(
    isa: str, place: int, value: float, hadamard: int, bits: int, dtype: torch.dtype
) -> None:
    x = tokens(3, 192).to(dtype)
    x[1, place] = value
    with using(isa), pytest.raises(QuotaError, match="NaN or infinity"):
        linear.quantize(x, InputSpec(192, bits, 64, hadamard))


@every_isa
def test_a_rotation_beyond_float32_raises(isa: str) -> None:
    x = torch.full((1, 64), 3e38)
    with using(isa), pytest.raises(QuotaError, match="NaN or infinity"):
        linear.quantize(x, InputSpec(64, 4, 64, 64))


@both_bits
@pytest.mark.parametrize("hadamard", [0, 64])
@pytest.mark.parametrize("columns", [40, 96, 768])
def test_errors_are_alike_on_all_paths(columns: int, hadamard: int, bits: int) -> None:
    block = min(hadamard, columns & -columns)
    x, inputs, found = tokens(21, columns), InputSpec(columns, bits, 8, block), []
    for isa in HERE:
        with using(isa):
            found.append(visual.activation_error(x, inputs))
    assert all(torch.equal(each, found[0]) for each in found)
    values, scale = linear.quantize(x, inputs)
    exact = dequantize_activation(values, scale) - block_hadamard_naive(x, block)
    torch.testing.assert_close(found[0], exact.norm(dim=1), rtol=1e-4, atol=1e-6)
