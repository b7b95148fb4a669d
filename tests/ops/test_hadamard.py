"""The block rotation: its definition, its inverse, and the one of compressed-tensors."""

from __future__ import annotations

import pytest
import torch
from compressed_tensors.transform.utils.hadamard import deterministic_hadamard_matrix

from quota.ops.hadamard import block_hadamard, block_hadamard_naive, hadamard_matrix

blocks = pytest.mark.parametrize("block", [0, 1, 2, 16, 64])


def random_tensor(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@blocks
def test_fast_equals_naive(block: int) -> None:
    x = random_tensor(2, 3, 128)
    torch.testing.assert_close(block_hadamard(x, block), block_hadamard_naive(x, block))


@blocks
def test_it_is_orthonormal_and_its_own_inverse(block: int) -> None:
    x = random_tensor(5, 128)
    rotated = block_hadamard(x, block)
    torch.testing.assert_close(block_hadamard(rotated, block), x)
    torch.testing.assert_close(rotated.norm(dim=-1), x.norm(dim=-1))


def test_the_first_caller_decides_no_type() -> None:
    hadamard_matrix.cache_clear()
    torch.set_default_dtype(torch.bfloat16)
    try:
        block_hadamard(torch.ones(1, 8), 8)
    finally:
        torch.set_default_dtype(torch.float32)
    assert hadamard_matrix(8, torch.device("cpu")).dtype == torch.float32


def test_order_and_scale_are_those_of_compressed_tensors() -> None:
    x = random_tensor(5, 192)
    matrix = deterministic_hadamard_matrix(64, torch.float32)
    expected = (x.unflatten(-1, (3, 64)) @ matrix / 8).flatten(-2)
    torch.testing.assert_close(block_hadamard(x, 64), expected, rtol=1e-6, atol=1e-6)


def test_a_linear_layer_is_unchanged_when_both_sides_are_rotated() -> None:
    x, weight = random_tensor(4, 128), random_tensor(7, 128)
    torch.testing.assert_close(block_hadamard(x, 64) @ block_hadamard(weight, 64).T, x @ weight.T, atol=1e-4, rtol=1e-4)


def test_an_outlier_is_spread_over_its_block_only() -> None:
    x = torch.zeros(1, 128)
    x[0, 70] = 8.0
    rotated = block_hadamard(x, 64)
    assert torch.equal(rotated[0, :64], torch.zeros(64))
    assert torch.equal(rotated[0, 64:].abs(), torch.ones(64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtype_shape_and_empty_batches_are_kept(dtype: torch.dtype) -> None:
    for shape in [(0, 64), (1, 64), (2, 0, 64), (2, 5, 64)]:
        rotated = block_hadamard(torch.ones(shape, dtype=dtype), 64)
        assert (rotated.shape, rotated.dtype) == (shape, dtype)


def test_the_cached_matrix_is_fit_for_training_after_a_first_use_in_inference_mode() -> None:
    with torch.inference_mode():
        block_hadamard(torch.ones(1, 32), 32)
    x = torch.ones(1, 32, requires_grad=True)
    block_hadamard(x, 32).sum().backward()
    assert x.grad is not None
