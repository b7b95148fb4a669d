"""The Kronecker product in front of a linear: nothing changes but what is quantised."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from quota.ops.hadamard import block_hadamard
from quota.ops.integer import quantize_activation
from quota.quantization.kronecker import Kronecker, clip_groups, turn, turn_naive
from quota.scheme import QuantizationScheme

SCHEME = QuantizationScheme(transforms="trained")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def disturbed(features: int, clip: float = 1.0) -> Kronecker:
    """Some invertible transform."""
    transform = Kronecker(features, SCHEME)
    transform.left += random(*transform.left.shape, seed=1) / (3 * len(transform.left) ** 0.5)
    transform.right += random(*transform.right.shape, seed=2) / (3 * len(transform.right) ** 0.5)
    transform.clip.fill_(clip)
    return transform


FEATURES = [128, 192, 96, 20, 7]


@pytest.mark.parametrize("features", FEATURES, ids=lambda k: f"K{k}")
def test_at_first_it_is_the_block_hadamard(features: int) -> None:
    x = random(3, features)
    expected = block_hadamard(x, SCHEME.hadamard_for(features))
    torch.testing.assert_close(Kronecker(features, SCHEME)(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("features", FEATURES, ids=lambda k: f"K{k}")
def test_the_product_with_the_weights_does_not_change(features: int) -> None:
    x, weight, transform = random(2, 3, features), random(5, features, seed=3), disturbed(features)
    product = transform.turn(x) @ transform.turn_weight(weight).T
    torch.testing.assert_close(product, x @ weight.T, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("features", FEATURES, ids=lambda k: f"K{k}")
def test_it_is_the_whole_matrix(features: int) -> None:
    x, transform = random(4, features), disturbed(features)
    whole = turn_naive(x, transform.left, transform.right)
    torch.testing.assert_close(turn(x, transform.left, transform.right), whole, rtol=1e-4, atol=1e-4)


@given(clip=st.floats(0.1, 1), seed=st.integers(0, 99))
def test_clipping_shortens_the_range_of_the_quantiser_by_as_much(clip: float, seed: int) -> None:
    x = random(3, 128, seed=seed)
    _, whole, _ = quantize_activation(x, 4, 64)
    _, cut, _ = quantize_activation(clip_groups(x, torch.tensor([clip]), 64), 4, 64)
    torch.testing.assert_close(cut, whole * clip)


def test_what_is_within_the_range_is_not_clipped() -> None:
    x = random(3, 128)
    assert torch.equal(clip_groups(x, torch.ones(1), 64), x)
    changed = clip_groups(x, torch.tensor([0.9]), 64) != x
    ends = (x.unflatten(1, (2, 64)).amax(2) * 0.9, x.unflatten(1, (2, 64)).amin(2) * 0.9)
    outside = (x.unflatten(1, (2, 64)) > ends[0][..., None]) | (x.unflatten(1, (2, 64)) < ends[1][..., None])
    assert torch.equal(changed, outside.flatten(1))
    assert changed.any()


def test_bfloat16_holds_it_and_its_inputs() -> None:
    transform = disturbed(128)
    for buffer in (transform.left, transform.right):
        buffer.copy_(buffer.bfloat16())
    x = random(2, 128).bfloat16()
    expected = transform(x)
    assert expected.dtype == torch.float32
    assert torch.equal(transform.to(torch.bfloat16)(x), expected)
