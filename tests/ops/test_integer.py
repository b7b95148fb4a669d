"""Integer quantisers against their definition and compressed-tensors, and on inputs that break things."""

from __future__ import annotations

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from compressed_tensors.quantization import QuantizationArgs, fake_quantize
from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quota.errors import QuotaError
from quota.ops.integer import (
    dequantize_activation,
    dequantize_weight,
    pack_int32,
    quantize_activation,
    quantize_weight,
    unpack_int32,
)

seeds = st.integers(0, 2**31 - 1)
bits_48 = pytest.mark.parametrize("bits", [4, 8], ids=lambda bits: f"{bits}bit")


def random_rows(rows: int, channels: int, seed: int, spread: float = 1.0) -> Tensor:
    """Rows of different size and offset [rows, channels]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, channels, generator=generator)
    return x * spread * torch.rand(rows, 1, generator=generator) + torch.randn(rows, 1, generator=generator)


AWKWARD = {
    "zeros": torch.zeros(2, 128),
    "constant": torch.full((2, 128), 3.25),
    "negative constant": torch.full((2, 128), -7.0),
    "one outlier": torch.cat([torch.full((2, 1), 1e4), random_rows(2, 127, 0)], dim=1),
    "subnormal": torch.full((2, 128), 1e-40),
    "subnormal of both signs": torch.tensor([1e-40, -3e-41]).repeat(2, 64),
    "smallest normal": torch.tensor([1.2e-38, -1.2e-38]).repeat(2, 64),
    "huge": torch.tensor([1e38, -1e38]).repeat(2, 64),
    "one token": random_rows(1, 128, 1),
    "no token": torch.zeros(0, 128),
    "three dimensions": random_rows(6, 128, 2).reshape(2, 3, 128),
}


@bits_48
@pytest.mark.parametrize("x", AWKWARD.values(), ids=AWKWARD.keys())
def test_activation_error_is_at_most_one_step(x: Tensor, bits: int) -> None:
    q, scale, zero = quantize_activation(x, bits, 64)
    assert q.shape == x.shape
    assert scale.shape == zero.shape == (*x.shape[:-1], 2)
    assert (q.dtype, scale.dtype, zero.dtype) == (torch.uint8, torch.float32, torch.int32)
    assert bool((q <= 2**bits - 1).all() and (zero >= 0).all() and (zero <= 2**bits - 1).all())
    # Half a step from rounding x, half from rounding the zero point.
    error = (dequantize_activation(q, scale, zero) - x).abs()
    assert bool((error <= scale.repeat_interleave(64, dim=-1) * 1.0001).all())


def test_zero_stays_exactly_zero() -> None:
    x = random_rows(8, 64, 3)
    x[:, ::5] = 0
    restored = dequantize_activation(*quantize_activation(x, 4, 64))
    assert torch.equal(restored[:, ::5], torch.zeros_like(restored[:, ::5]))


@given(seeds, st.sampled_from([4, 8]), st.sampled_from([1, 4, 32, 64]), st.sampled_from([1e-3, 1.0, 50.0]))
@settings(max_examples=40, deadline=None)
def test_activations_equal_those_of_compressed_tensors(seed: int, bits: int, group: int, spread: float) -> None:
    x = random_rows(5, 64, seed, spread)
    args = QuantizationArgs(num_bits=bits, strategy="group", group_size=group, symmetric=False, dynamic=True)
    scale, zero = compute_dynamic_scales_and_zp(x, args, torch.nn.Identity())
    ours = quantize_activation(x, bits, group)
    assert torch.equal(ours[1], scale)
    assert torch.equal(ours[2] - 2 ** (bits - 1), zero.to(torch.int32))
    assert torch.equal(dequantize_activation(*ours), fake_quantize(x, scale, zero, args))


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_a_token_is_quantised_alike_alone_and_in_a_batch(seed: int) -> None:
    x = random_rows(7, 128, seed)
    together = quantize_activation(x, 4, 64)
    alone = quantize_activation(x[3:4], 4, 64)
    for whole, single in zip(together, alone, strict=True):
        assert torch.equal(whole[3:4], single)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_activations_that_are_not_finite_are_refused(value: float) -> None:
    x = torch.ones(3, 64)
    x[1, 5] = value
    with pytest.raises(QuotaError, match="NaN or infinity"):
        quantize_activation(x, 4, 64)


@bits_48
@pytest.mark.parametrize(
    "weight",
    [
        random_rows(3, 64, 4),
        torch.zeros(3, 64),
        torch.full((3, 64), -0.5),
        torch.full((3, 64), 1e-42),
        torch.zeros(0, 64),
    ],
    ids=["random", "zeros", "constant", "subnormal", "no rows"],
)
def test_weights_round_to_the_nearest_level(weight: Tensor, bits: int) -> None:
    q, scale = quantize_weight(weight, bits, 32)
    assert q.dtype == torch.int8
    assert scale.shape == (weight.shape[0], 2)
    assert torch.equal(scale, scale.to(torch.bfloat16).float())
    levels = torch.arange(-(2 ** (bits - 1)), 2 ** (bits - 1)) * scale.repeat_interleave(32, dim=1).unsqueeze(-1)
    nearest = (levels - weight.unsqueeze(-1)).abs().amin(-1)
    assert torch.allclose((dequantize_weight(q, scale) - weight).abs(), nearest, atol=1e-6)


def test_the_clip_search_beats_no_clipping_and_follows_importance() -> None:
    weight = torch.distributions.StudentT(4.0).sample((16, 64))
    largest = weight.abs().amax(1, keepdim=True) / 7
    unclipped = (weight / largest).round() * largest

    def error(restored: Tensor, importance: Tensor) -> float:
        return float(((restored - weight).square() * importance).sum())

    alike = torch.ones(64)
    plain = dequantize_weight(*quantize_weight(weight, 4, 64))
    assert error(plain, alike) < 0.9 * error(unclipped, alike)

    uneven = torch.linspace(0.01, 1.0, 64).pow(4)
    weighed = dequantize_weight(*quantize_weight(weight, 4, 64, importance=uneven))
    assert error(weighed, uneven) < error(plain, uneven)


def test_weights_that_are_not_finite_are_refused() -> None:
    with pytest.raises(QuotaError, match="NaN or infinity"):
        quantize_weight(torch.tensor([[1.0, float("nan")]]), 4, 2)


@given(st.integers(1, 5), st.integers(1, 80), st.sampled_from([4, 8]), seeds)
@settings(max_examples=60, deadline=None)
def test_packing_is_that_of_compressed_tensors(rows: int, columns: int, bits: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    limit = 2 ** (bits - 1)
    q = torch.randint(-limit, limit, (rows, columns), dtype=torch.int8, generator=generator)
    packed = pack_int32(q, bits)
    assert torch.equal(packed, pack_to_int32(q, bits))
    assert torch.equal(unpack_int32(packed, bits, columns), q)
    assert torch.equal(unpack_from_int32(packed, bits, q.shape), q)
