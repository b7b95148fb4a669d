"""The two-level quantiser of activations against its definition, number by number, and on inputs that break things."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quota.errors import QuotaError
from quota.ops.activations import dequantize_activation, quantize_activation

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
    "two outliers": torch.tensor([1e4, -1e4, *[0.5] * 126]).repeat(2, 1),
    "subnormal": torch.full((2, 128), 1e-40),
    "subnormal of both signs": torch.tensor([1e-40, -3e-41]).repeat(2, 64),
    "smallest normal": torch.tensor([1.2e-38, -1.2e-38]).repeat(2, 64),
    "smallest scale": torch.tensor([1.5e-36, -1.5e-36]).repeat(2, 64),
    "as large as float32 holds": torch.tensor([3.4e38, -3.4e38]).repeat(2, 64),
    "one token": random_rows(1, 128, 1),
    "no token": torch.zeros(0, 128),
    "no channel": torch.zeros(3, 0),
    "three dimensions": random_rows(6, 128, 2).reshape(2, 3, 128),
}


def by_definition(row: Tensor, bits: int, group: int) -> tuple[list[int], float]:
    """One token [K], one number at a time, in float32."""
    one = np.float32
    x = [one(value) for value in row.float().tolist()]
    scale = one(max(map(abs, x))) / one(122 if bits == 4 else 127)
    scale = one(1) if scale < np.finfo(one).tiny else scale
    t = [value * (one(1) / scale) for value in x]
    if bits == 8:
        return [int(np.clip(np.rint(value), -127, 127)) for value in t], float(scale)
    values = []
    for start in range(0, len(t), group):
        part = t[start : start + group]
        low, high = min(part), max(part)
        step = max(one(1), np.rint((high - low) * one(1 / 15)))
        offset = np.rint((low + high) * one(0.5) - step * one(7.5))
        codes = [np.clip(np.rint((value - offset) * (one(1) / step)), 0, 15) for value in part]
        values += [int(step * code + offset) for code in codes]
    return values, float(scale)


@bits_48
@given(seed=seeds, group=st.sampled_from([1, 4, 32, 64]), spread=st.sampled_from([1e-3, 1.0, 50.0]))
@settings(max_examples=30, deadline=None)
def test_values_and_scales_are_those_of_the_definition(bits: int, seed: int, group: int, spread: float) -> None:
    x = random_rows(3, 64, seed, spread)
    values, scale = quantize_activation(x, bits, group)
    for row, found, size in zip(x, values.tolist(), scale.tolist(), strict=True):
        assert by_definition(row, bits, group) == (found, size)


@bits_48
@pytest.mark.parametrize("x", AWKWARD.values(), ids=AWKWARD.keys())
def test_numbers_stay_in_range_and_the_error_within_a_step(x: Tensor, bits: int) -> None:
    values, scale = quantize_activation(x, bits, 64)
    assert (values.shape, scale.shape) == (x.shape, x.shape[:-1])
    assert (values.dtype, scale.dtype) == (torch.int8, torch.float32)
    assert not (values == -128).any()
    if x.numel():
        groups = x.double().unflatten(-1, (-1, 64))
        spread = (groups.amax(-1) - groups.amin(-1)) / 15 / scale.double().unsqueeze(-1)
        # Half a step, which is rounded; and half a unit each for step, offset and the ends.
        step = (spread + 0.5).clamp(min=1) if bits == 4 else torch.ones_like(spread)
        error = (dequantize_activation(values, scale).double() - x).abs().unflatten(-1, (-1, 64))
        allowed = (step / 2 + (4.5 if bits == 4 else 0.001)) * scale.double().unsqueeze(-1)
        assert bool((error.amax(-1) <= allowed).all())


def test_there_are_sixteen_levels_a_group_on_the_grid_of_the_token() -> None:
    values, _ = quantize_activation(random_rows(40, 256, 5), 4, 64)
    for group in values.unflatten(-1, (-1, 64)).flatten(0, 1).int():
        levels = group.unique()
        assert len(levels) <= 16
        steps = levels.diff()
        assert len(levels) == 1 or bool((steps % steps.min() == 0).all())


def test_four_bits_come_close_to_a_float_scale_for_every_group() -> None:
    x = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
    groups = x.unflatten(-1, (-1, 64))
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale = (high - low) / 15
    exact = (((groups - low) / scale).round() * scale + low - groups).square().sum()
    ours = (dequantize_activation(*quantize_activation(x, 4, 64)) - x).square().sum()
    assert ours < 1.03 * exact


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_a_token_is_quantised_alike_alone_and_in_a_batch(seed: int) -> None:
    x = random_rows(7, 128, seed)
    together = quantize_activation(x, 4, 64)
    alone = quantize_activation(x[3:4], 4, 64)
    for whole, single in zip(together, alone, strict=True):
        assert torch.equal(whole[3:4], single)


@bits_48
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_activations_that_are_not_finite_are_refused(value: float, bits: int) -> None:
    x = torch.ones(3, 64)
    x[1, 5] = value
    with pytest.raises(QuotaError, match="NaN or infinity"):
        quantize_activation(x, bits, 64)
