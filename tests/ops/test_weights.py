"""The two-level quantiser of weights: nearest levels, the best steps, and scales that a checkpoint holds exactly."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quota.errors import QuotaError
from quota.ops.weights import dequantize_weight, join_scales, quantize_weight, split_scales, whole_weight

seeds = st.integers(0, 2**31 - 1)


def random_weight(rows: int, columns: int, seed: int) -> Tensor:
    """Groups of 32 channels of very different size."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.rand(rows, columns // 32, generator=generator).pow(3) + 0.01
    return torch.randn(rows, columns, generator=generator) * size.repeat_interleave(32, dim=1)


WEIGHTS = {
    "random": random_weight(3, 128, 4),
    "zeros": torch.zeros(3, 128),
    "a group of zeros": random_weight(3, 128, 4).index_fill(1, torch.arange(32, 64), 0),
    "constant": torch.full((3, 128), -0.5),
    "one outlier": random_weight(3, 128, 5).index_fill(1, torch.tensor(70), 1e4),
    "subnormal": torch.full((3, 128), 1e-42),
    "large": random_weight(3, 128, 6) * 1e30,
    "no rows": torch.zeros(0, 128),
}


@pytest.mark.parametrize("bits", [4, 8], ids=["4bit", "8bit"])
@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS.keys())
def test_weights_round_to_the_nearest_level(weight: Tensor, bits: int) -> None:
    group = 32 if bits == 4 else 128
    q, step, scale = quantize_weight(weight, bits, group)
    assert (q.dtype, step.dtype, scale.dtype) == (torch.int8, torch.uint8, torch.float32)
    assert (step.shape, scale.shape) == ((len(weight), 128 // group), (len(weight),))
    assert bool(((step >= 1) & (step <= (16 if bits == 4 else 1))).all())
    size = step.double() * scale.double().unsqueeze(-1)
    levels = torch.arange(-(2 ** (bits - 1)), 2 ** (bits - 1)) * size.repeat_interleave(group, dim=1).unsqueeze(-1)
    nearest = (levels - weight.double().unsqueeze(-1)).abs().amin(-1)
    found = (dequantize_weight(q, step, scale).double() - weight).abs()
    assert bool((found <= nearest * 1.00001 + 1e-37).all())


@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS.keys())
def test_the_step_of_a_group_is_the_best_of_sixteen(weight: Tensor) -> None:
    _, step, scale = quantize_weight(weight, 4, 32)

    def error(steps: Tensor) -> Tensor:
        size = (steps.float() * scale.unsqueeze(-1)).unsqueeze(-1)
        groups = weight.unflatten(-1, (-1, 32))
        return ((groups / size).round().clamp(-8, 7) * size - groups).square().sum(-1)

    best = torch.stack([error(torch.full_like(step, each)) for each in range(1, 17)]).amin(0)
    assert torch.equal(error(step), best)


def test_whole_weights_fit_a_byte() -> None:
    q, step = torch.tensor([[-8, 7]], dtype=torch.int8), torch.tensor([[16]], dtype=torch.uint8)
    assert whole_weight(q, step).tolist() == [[-128, 112]]


@given(seeds, st.sampled_from([1e-20, 1e-3, 1.0, 1e20]))
@settings(max_examples=40, deadline=None)
def test_a_checkpoint_holds_scales_exactly(seed: int, size: float) -> None:
    q, step, scale = quantize_weight(random_weight(5, 256, seed) * size, 4, 32)
    stored = join_scales(step, scale)
    assert stored.dtype == torch.bfloat16
    assert torch.equal(stored.float(), step * scale.unsqueeze(-1))
    found_step, found_scale = split_scales(stored)
    # Steps that are all even come back as half of them.
    assert torch.equal(dequantize_weight(q, found_step, found_scale), dequantize_weight(q, step, scale))
    factor = step // found_step
    assert torch.equal(factor, factor[:, :1].expand_as(factor))


@pytest.mark.parametrize(
    "stored",
    [torch.tensor([[1.0, 1.0078125]]), torch.tensor([[1.0, 17.0]]), torch.tensor([[1e-30, 1e30]])],
    ids=["neighbours", "17 times", "far apart"],
)
def test_scales_of_an_older_version_are_refused(stored: Tensor) -> None:
    with pytest.raises(QuotaError, match="compress the model again"):
        split_scales(stored.to(torch.bfloat16))


def test_the_search_beats_no_clipping_and_follows_importance() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 64, generator=generator) / torch.rand(64, 64, generator=generator).clamp(min=0.1)
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


def test_steps_cost_little_beside_a_float_scale_for_every_group() -> None:
    weight = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0))
    groups = weight.unflatten(-1, (-1, 64))
    least = torch.full(groups.shape[:-1], torch.inf)
    for ratio in torch.linspace(1.0, 0.4, 64).tolist():
        size = groups.abs().amax(-1, keepdim=True) * (ratio / 7)
        least = torch.minimum(least, ((groups / size).round().clamp(-8, 7) * size - groups).square().sum(-1))
    ours = (dequantize_weight(*quantize_weight(weight, 4, 64)) - weight).square().sum()
    assert ours < 1.05 * least.sum()


@pytest.mark.parametrize("bits", [4, 8], ids=["4bit", "8bit"])
def test_weights_that_are_not_finite_are_refused(bits: int) -> None:
    with pytest.raises(QuotaError, match="NaN or infinity"):
        quantize_weight(torch.tensor([[1.0, float("nan")]]), bits, 2)
