"""The reference operator against plain int32 arithmetic, exactly, before scaling."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.operands import ROWS, make_weight
from torch import Tensor

from quota.errors import QuotaError
from quota.ops.activations import quantize_activation
from quota.ops.hadamard import block_hadamard
from quota.ops.interface import InputSpec, LinearSpec, LinearWeight
from quota.ops.packing import unpack_int32
from quota.ops.reference import ReferenceBackend
from quota.ops.reference.backend import LARGEST_COLUMNS, sums, sums_naive
from quota.ops.weights import dequantize_weight, whole_weight

REFERENCE = ReferenceBackend()
shapes = st.tuples(st.sampled_from([0, 1, 2, 5]), st.sampled_from([1, 3, 8]))


def random_values(rows: int, columns: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-128, 128, (rows, columns), generator=generator, dtype=torch.int8)


@given(shapes, st.sampled_from([1, 5, 64, 1023, 1024, 1025, 3000]), st.integers(0, 2**31 - 1))
@settings(max_examples=50, deadline=None)
def test_sums_equal_the_int32_oracle(shape: tuple[int, int], channels: int, seed: int) -> None:
    x, weight = random_values(shape[0], channels, seed), random_values(shape[1], channels, seed + 1)
    found = sums(x, weight)
    assert found.dtype == torch.int32
    assert torch.equal(found, sums_naive(x, weight))


def test_the_largest_sum_that_can_occur_is_exact() -> None:
    x = torch.full((2, LARGEST_COLUMNS), -128, dtype=torch.int8)
    x[1, 511] = -127
    weight = torch.full((1, LARGEST_COLUMNS), -128, dtype=torch.int8)
    most = 128 * 128 * LARGEST_COLUMNS
    assert sums(x, weight).flatten().tolist() == [most, most - 128]
    assert most < 2**31 <= most + 128 * 128


def test_layers_whose_sums_would_overflow_are_refused() -> None:
    wide = LinearSpec(8, 4, 64, InputSpec(LARGEST_COLUMNS + 1, 4, 64, 64))
    assert "do not fit 32 bits" in str(REFERENCE.lacks(wide))
    assert REFERENCE.lacks(replace(wide, inputs=replace(wide.inputs, columns=LARGEST_COLUMNS))) is None


def by_hand(x: Tensor, weight: LinearWeight) -> Tensor:
    """The operator from int32 sums, each operation behind them in float32."""
    spec = weight.spec
    rotated = block_hadamard(x.float(), spec.inputs.hadamard)
    values, scale = quantize_activation(rotated, spec.inputs.bits, spec.inputs.group)
    whole = whole_weight(unpack_int32(weight.packed, spec.bits, spec.columns), weight.step)
    y = sums_naive(values, whole).float() * weight.scale * scale[:, None]
    return y if weight.bias is None else y + weight.bias


@pytest.mark.parametrize("bits", [4, 8], ids=["W4", "W8"])
@pytest.mark.parametrize("activation_bits", [4, 8], ids=["A4", "A8"])
@pytest.mark.parametrize(("group", "hadamard"), [(64, 0), (16, 64)], ids=["64", "16, rotated"])
@pytest.mark.parametrize("x", ROWS.values(), ids=ROWS.keys())
def test_the_operator_is_the_oracle_scaled(x: Tensor, group: int, hadamard: int, activation_bits: int, bits: int):
    weight = make_weight(10, 128, bits, activation_bits, group, group, hadamard)
    assert torch.equal(REFERENCE.linear(x, [weight])[0], by_hand(x, weight))


def test_16_bit_activations_stay_as_they_are() -> None:
    x, weight = ROWS["random"], make_weight(10, 128, activation_bits=16, hadamard=64)
    dense = dequantize_weight(unpack_int32(weight.packed, 4, 128), weight.step, weight.scale)
    assert weight.bias is not None
    expected = block_hadamard(x, 64) @ dense.T + weight.bias
    torch.testing.assert_close(REFERENCE.linear(x, [weight])[0], expected)


@pytest.mark.parametrize(("x_group", "w_group"), [(64, 32), (16, 64), (128, 8)])
def test_groups_of_activations_and_weights_may_differ(x_group: int, w_group: int) -> None:
    weight = make_weight(10, 128, group=w_group, activation_group=x_group)
    assert torch.equal(REFERENCE.linear(ROWS["random"], [weight])[0], by_hand(ROWS["random"], weight))


def test_siblings_read_one_input() -> None:
    weights = [make_weight(rows, 128, seed=rows) for rows in (10, 3, 7)]
    together = REFERENCE.linear(ROWS["random"], weights)
    assert [y.shape for y in together] == [(6, 10), (6, 3), (6, 7)]
    for y, weight in zip(together, weights, strict=True):
        assert torch.equal(y, REFERENCE.linear(ROWS["random"], [weight])[0])


def test_layers_that_quantise_in_different_ways_do_not_share() -> None:
    with pytest.raises(QuotaError, match="different ways"):
        REFERENCE.linear(ROWS["random"], [make_weight(3, 128), make_weight(3, 128, activation_bits=8)])


@given(st.integers(0, 2**31 - 1), st.integers(0, 8))
@settings(max_examples=25, deadline=None)
def test_a_row_does_not_depend_on_the_rest_of_the_batch(seed: int, row: int) -> None:
    x, weight = torch.randn(9, 192, generator=torch.Generator().manual_seed(seed)), make_weight(5, 192, seed=seed)
    [together] = REFERENCE.linear(x, [weight])
    assert torch.equal(together[row : row + 1], REFERENCE.linear(x[row : row + 1], [weight])[0])


def test_sums_stay_exact_when_float32_products_may_be_made_of_bfloat16() -> None:
    # Factors have at most 8 significant bits, so they survive; sums are kept in float32 by the library.
    x, weight = random_values(64, 128, 4), random_values(64, 128, 5)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(sums(x, weight), sums_naive(x, weight))
    finally:
        torch.set_float32_matmul_precision(before)


def test_it_reads_the_padded_last_word_of_an_odd_layer() -> None:
    weight = make_weight(4, 12)
    assert weight.packed.shape == (4, 2)
    x = torch.randn(3, 12, generator=torch.Generator().manual_seed(6))
    assert torch.equal(REFERENCE.linear(x, [weight])[0], by_hand(x, weight))
