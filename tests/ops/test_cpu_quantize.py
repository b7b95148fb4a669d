"""Codes of activations from the C++ kernels: the oracle's exactly without a rotation, alike on all paths with one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quota.ops.integer import dequantize_activation, quantize_activation
from support.instruction_sets import HERE, every_isa, needs_library, using
from torch import Tensor

from quota.errors import QuotaError
from quota.ops.cpu import linear as w4a4
from quota.ops.hadamard import block_hadamard

pytestmark = needs_library

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def tokens(rows: int, columns: int, seed: int = 1) -> Tensor:
    """Like activations: channels of very different size."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.rand(columns, generator=generator).pow(4) * 10
    return torch.randn(rows, columns, generator=generator) * sizes


def assert_quantized_alike(x: Tensor, group: int) -> None:
    codes, scale = w4a4.quantize(x, group, 0)
    q, expected_scale, zero = quantize_activation(x, 4, group)
    assert torch.equal(scale, expected_scale)
    assert torch.equal(codes.to(torch.int32), q.to(torch.int32) - zero.repeat_interleave(group, dim=1))


ROWS = {
    "zeros": torch.zeros(2, 256),
    "negative zeros": torch.full((2, 256), -0.0),
    "constant rows": torch.tensor([[2.5], [-1e-3]]).repeat(1, 256),
    "one outlier": tokens(2, 256).index_fill(1, torch.tensor(9), 1e4),
    "one negative outlier": tokens(2, 256).index_fill(1, torch.tensor(77), -1e4),
    "subnormal": torch.full((2, 256), 1e-40),
    "almost subnormal": torch.linspace(-1, 1, 512).reshape(2, 256) * 2e-37,
    "as large as float32 holds": torch.linspace(0, 3.4e38, 512).reshape(2, 256),
    "one token": tokens(1, 256),
    "no token": torch.zeros(0, 256),
}


@every_isa
@pytest.mark.parametrize("group", [8, 16, 32, 64, 128, 256])
@pytest.mark.parametrize("x", ROWS.values(), ids=ROWS.keys())
def test_codes_of_adversarial_rows_are_the_oracles(isa: str, x: Tensor, group: int) -> None:
    with using(isa):
        assert_quantized_alike(x, group)


@given(
    st.integers(0, 2**31 - 1),
    st.sampled_from([(8, 8), (40, 8), (48, 16), (96, 32), (64, 64), (192, 64), (256, 256)]),
    st.floats(-37, 30),
    st.sampled_from(list(TYPES)),
)
@settings(max_examples=60, deadline=None)
def test_codes_and_scales_are_the_oracles(seed: int, sizes: tuple[int, int], exponent: float, dtype: str) -> None:
    columns, group = sizes
    x = tokens(3, columns, seed) * 10**exponent
    x = x.clamp(-6e4, 6e4).to(TYPES[dtype]) if dtype == "float16" else x.to(TYPES[dtype])
    for isa in HERE:
        with using(isa):
            assert_quantized_alike(x, group)


@every_isa
def test_quotients_next_to_a_tie_fall_on_the_oracles_side(isa: str) -> None:
    # The last bit of a quotient decides there; to multiply by the inverse of the scale gets some of them wrong.
    scale = torch.rand(4000, 1, generator=torch.Generator().manual_seed(3)) + 0.5
    ties = (torch.arange(60) // 4 + 0.5) * scale
    ties[:, 0::4] = ties[:, 0::4].nextafter(torch.tensor(torch.inf))
    ties[:, 1::4] = ties[:, 1::4].nextafter(torch.tensor(-torch.inf))
    x = torch.cat((torch.zeros(4000, 3), 15 * scale, ties), dim=1)
    by_inverse = (x * (1 / (x.amax(1, keepdim=True) / 15)) - 8).round()
    assert not torch.equal(by_inverse, (x / (x.amax(1, keepdim=True) / 15) - 8).round())
    with using(isa):
        assert_quantized_alike(x, 64)
        assert_quantized_alike(-x, 64)
        assert_quantized_alike(x - 7 * scale, 64)


@every_isa
def test_every_float16_is_read_as_it_is(isa: str) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    with using(isa):
        assert_quantized_alike(every[every.isfinite()].reshape(-1, 8), 8)


@pytest.mark.parametrize("hadamard", [2, 4, 8, 16, 32, 64, 128, 256])
def test_rotated_codes_are_alike_on_all_paths_and_stand_for_the_rotated_row(hadamard: int) -> None:
    x = tokens(5, 512)
    with using("portable"):
        codes, scale = w4a4.quantize(x, 64, hadamard)
    for isa in HERE:
        with using(isa):
            other_codes, other_scale = w4a4.quantize(x, 64, hadamard)
        assert torch.equal(codes, other_codes)
        assert torch.equal(scale, other_scale)

    oracle = dequantize_activation(*quantize_activation(block_hadamard(x, hadamard), 4, 64))
    seen = (codes.float().unflatten(1, (-1, 64)) * scale.unsqueeze(-1)).flatten(1)
    # A code may differ by one, next to a tie.
    assert ((seen - oracle).abs() <= scale.repeat_interleave(64, dim=1) * 1.001).all()
    assert ((seen - oracle).abs() > 1e-3 * oracle.abs().max()).float().mean() < 1e-2


@every_isa
@pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES.keys())
@pytest.mark.parametrize("hadamard", [0, 64])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("place", [0, 63, 190])
def test_what_is_not_finite_raises(isa: str, place: int, value: float, hadamard: int, dtype: torch.dtype) -> None:
    x = tokens(3, 192).to(dtype)
    x[1, place] = value
    with using(isa), pytest.raises(QuotaError, match="NaN or infinity"):
        w4a4.quantize(x, 64, hadamard)


@every_isa
def test_a_range_beyond_float32_raises(isa: str) -> None:
    x = torch.zeros(1, 64)
    x[0, :2] = torch.tensor([3e38, -3e38])
    with using(isa), pytest.raises(QuotaError, match="NaN or infinity"):
        w4a4.quantize(x, 64, 0)
