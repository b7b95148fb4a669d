"""The reference operator against plain int32 arithmetic, exactly, before scaling."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quota.ops.integer import (
    dequantize_activation,
    dequantize_weight,
    pack_int32,
    quantize_activation,
    quantize_weight,
    unpack_int32,
)
from quota.ops.reference.backend import group_sums, group_sums_naive, quantized_product

shapes = st.tuples(st.sampled_from([0, 1, 2, 5]), st.sampled_from([1, 3, 8]))


@given(
    shapes,
    st.sampled_from([(64, 64), (128, 32), (40, 8), (6, 2), (5, 1), (512, 256)]),
    st.integers(0, 2**31 - 1),
)
@settings(max_examples=50, deadline=None)
def test_group_sums_equal_the_int32_oracle(shape: tuple[int, int], sizes: tuple[int, int], seed: int) -> None:
    (rows, outputs), (channels, group) = shape, sizes
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-255, 256, (rows, channels), generator=generator)
    weight = torch.randint(-128, 128, (outputs, channels), generator=generator)
    sums = group_sums(x, weight, group)
    assert sums.dtype == torch.int32
    assert torch.equal(sums, group_sums_naive(x, weight, group))


def test_the_largest_sum_that_can_occur_is_exact() -> None:
    # 255 * 128 * 512 is below 2^24; one less in a single term must still be seen.
    x = torch.full((2, 512), 255)
    x[1, 511] = 254
    weight = torch.full((1, 512), -128)
    assert group_sums(x, weight, 512).flatten().tolist() == [-255 * 128 * 512, -255 * 128 * 512 + 128]


def scaled_oracle(q: Tensor, x_scale: Tensor, zero: Tensor, w: Tensor, w_scale: Tensor) -> Tensor:
    """The operator from int32 sums, scaled group by group in order, groups of x and w being equal."""
    group = q.shape[1] // x_scale.shape[1]
    centred = q.to(torch.int32) - zero.repeat_interleave(group, dim=1)
    sums = group_sums_naive(centred, w, group).float()
    result = torch.zeros(q.shape[0], w.shape[0])
    for index in range(x_scale.shape[1]):
        result += sums[..., index] * w_scale[:, index] * x_scale[:, index, None]
    return result


ROWS = {
    "random": torch.randn(6, 128, generator=torch.Generator().manual_seed(0)),
    "zeros": torch.zeros(2, 128),
    "constant rows": torch.tensor([[2.5], [-1e-3]]).repeat(1, 128),
    "one outlier": torch.randn(2, 128, generator=torch.Generator().manual_seed(1)).index_fill(1, torch.tensor(9), 1e4),
    "subnormal": torch.full((2, 128), 1e-40),
    "one token": torch.randn(1, 128, generator=torch.Generator().manual_seed(2)),
    "no token": torch.zeros(0, 128),
}


@pytest.mark.parametrize("weight_bits", [4, 8], ids=["W4", "W8"])
@pytest.mark.parametrize("bits", [4, 8], ids=["A4", "A8"])
@pytest.mark.parametrize("group", [64, 16])
@pytest.mark.parametrize("x", ROWS.values(), ids=ROWS.keys())
def test_the_operator_is_the_oracle_scaled(x: Tensor, group: int, bits: int, weight_bits: int) -> None:
    weight = torch.randn(10, 128, generator=torch.Generator().manual_seed(3))
    w, w_scale = quantize_weight(weight, weight_bits, group)
    q, x_scale, zero = quantize_activation(x, bits, group)
    result = quantized_product(q, x_scale, zero, pack_int32(w, weight_bits), w_scale.to(torch.bfloat16), weight_bits)
    assert torch.equal(result, scaled_oracle(q, x_scale, zero, w, w_scale))


@pytest.mark.parametrize(("x_group", "w_group"), [(64, 32), (16, 64), (128, 8)])
def test_groups_of_activations_and_weights_may_differ(x_group: int, w_group: int) -> None:
    x, weight = ROWS["random"], torch.randn(10, 128, generator=torch.Generator().manual_seed(3))
    w, w_scale = quantize_weight(weight, 4, w_group)
    q, x_scale, zero = quantize_activation(x, 4, x_group)
    result = quantized_product(q, x_scale, zero, pack_int32(w, 4), w_scale, 4)
    expected = dequantize_activation(q, x_scale, zero).double() @ dequantize_weight(w, w_scale).double().T
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)


@given(st.integers(0, 2**31 - 1), st.integers(0, 8))
@settings(max_examples=25, deadline=None)
def test_a_row_does_not_depend_on_the_rest_of_the_batch(seed: int, row: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    q, x_scale, zero = quantize_activation(torch.randn(9, 192, generator=generator), 4, 64)
    w, w_scale = quantize_weight(torch.randn(5, 192, generator=generator), 4, 64)
    packed = pack_int32(w, 4)
    together = quantized_product(q, x_scale, zero, packed, w_scale, 4)
    one = slice(row, row + 1)
    assert torch.equal(together[one], quantized_product(q[one], x_scale[one], zero[one], packed, w_scale, 4))


def test_sums_stay_exact_when_float32_products_may_be_made_of_bfloat16() -> None:
    # Factors have at most 8 significant bits, so they survive; sums are kept in float32 by the library.
    generator = torch.Generator().manual_seed(4)
    x = torch.randint(-255, 256, (64, 128), generator=generator)
    weight = torch.randint(-128, 128, (64, 128), generator=generator)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(group_sums(x, weight, 64), group_sums_naive(x, weight, 64))
    finally:
        torch.set_float32_matmul_precision(before)


def test_the_operator_reads_the_padded_last_word_of_an_odd_layer() -> None:
    w, w_scale = quantize_weight(torch.randn(4, 12, generator=torch.Generator().manual_seed(5)), 4, 4)
    packed = pack_int32(w, 4)
    assert packed.shape == (4, 2)
    assert torch.equal(unpack_int32(packed, 4, 12), w)
    quantized = quantize_activation(torch.randn(3, 12, generator=torch.Generator().manual_seed(6)), 4, 4)
    assert torch.equal(quantized_product(*quantized, packed, w_scale, 4), scaled_oracle(*quantized, w, w_scale))
