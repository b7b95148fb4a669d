"""The C++ linear operator against the reference, on every instruction set that this machine has.

Where nothing is rotated, values, sums and results are the reference's to the last bit; behind a rotation, whose sums
the reference adds in another order, they are alike on all instruction sets.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.instruction_sets import HERE, every_isa, needs_library, using
from support.operands import ROWS as HARD
from support.operands import constant, make_weight
from torch import Tensor

from quota.errors import QuotaError
from quota.ops.cpu import CpuBackend
from quota.ops.interface import LinearWeight
from quota.ops.packing import unpack_int32
from quota.ops.reference import ReferenceBackend
from quota.ops.reference.backend import LARGEST_COLUMNS, sums_naive
from quota.ops.weights import whole_weight

pytestmark = needs_library

CPU, REFERENCE = CpuBackend(), ReferenceBackend()
HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
# Rows in and about the pieces in which they are worked on: one, 4, 8, two tiles of 16.
ROWS = [0, 1, 2, 4, 7, 8, 9, 16, 33]


def tokens(rows: int, columns: int, seed: int = 1) -> Tensor:
    """Like activations: channels of very different size."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * torch.rand(columns, generator=generator).pow(4) * 10


def linear(x: Tensor, weight: LinearWeight) -> Tensor:
    [y] = CPU.linear(x, [weight])
    return y


def oracle(x: Tensor, weight: LinearWeight) -> Tensor:
    [y] = REFERENCE.linear(x, [weight])
    return y


@given(
    st.integers(0, 2**31 - 1),
    st.sampled_from(ROWS),
    st.sampled_from([1, 5, 16, 17, 33, 70]),
    st.sampled_from([(8, 8), (40, 8), (48, 16), (96, 32), (64, 64), (128, 16), (704, 64), (1024, 128), (768, 256)]),
    st.sampled_from([4, 8]),
)
@settings(max_examples=120, deadline=None)
def test_sums_equal_the_oracles(seed: int, rows: int, outputs: int, sizes: tuple[int, int], bits: int) -> None:
    columns, group = sizes
    weight = make_weight(outputs, columns, bits, group=group, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-127, 128, (rows, columns), generator=generator, dtype=torch.int8)
    whole = whole_weight(unpack_int32(weight.packed, bits, columns), weight.step)
    expected = sums_naive(values, whole)
    assert torch.equal(REFERENCE.sums(values, weight), expected)
    for isa in HERE:
        with using(isa):
            assert torch.equal(CPU.sums(values, weight), expected)


@every_isa
@pytest.mark.parametrize("rows", [1, 2, 16], ids=["one token", "two", "a tile"])
@pytest.mark.parametrize("columns", [LARGEST_COLUMNS // 64 * 64, LARGEST_COLUMNS // 8 * 8], ids=["64", "8"])
@pytest.mark.parametrize(("value", "q"), [(127, -8), (-127, -8), (127, 7), (-127, 7)])
def test_the_largest_sums_that_can_occur_are_exact(isa: str, columns: int, rows: int, value: int, q: int) -> None:
    weight = constant(3, columns, q, 16, columns & -columns if columns % 64 else 64)
    with using(isa):
        sums = CPU.sums(torch.full((rows, columns), value, dtype=torch.int8), weight)
    assert torch.equal(sums, torch.full((rows, 3), value * q * 16 * columns, dtype=torch.int32))


@every_isa
@pytest.mark.parametrize("rows", [1, 2, 16], ids=["one token", "two", "a tile"])
@pytest.mark.parametrize("columns", [LARGEST_COLUMNS // 64 * 64, LARGEST_COLUMNS // 8 * 8], ids=["64", "8"])
@pytest.mark.parametrize(("value", "q"), [(127, -128), (-127, -128), (127, 127), (-127, 127)])
def test_the_largest_sums_of_bytes_are_exact(isa: str, columns: int, rows: int, value: int, q: int) -> None:
    weight = constant(3, columns, q, 1, columns, bits=8)
    with using(isa):
        sums = CPU.sums(torch.full((rows, columns), value, dtype=torch.int8), weight)
    assert torch.equal(sums, torch.full((rows, 3), value * q * columns, dtype=torch.int32))


# Name -> outputs, columns, group of weights, group of activations.
SHAPES = {
    "one chunk": (16, 64, 64, 64),
    "odd outputs": (37, 192, 64, 64),
    "several blocks of channels": (200, 1088, 64, 64),
    "groups of 8": (9, 40, 8, 8),
    "groups of 16": (9, 48, 16, 16),
    "groups of 32": (33, 96, 32, 32),
    "wider activation groups": (20, 512, 64, 256),
    "wider weight groups": (20, 512, 128, 64),
    "narrower weight groups": (20, 576, 8, 64),
    "wide groups": (20, 768, 256, 128),
}
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
both_bits = pytest.mark.parametrize("bits", [4, 8], ids=["A4", "A8"])
both_weights = pytest.mark.parametrize("weight_bits", [4, 8], ids=["W4", "W8"])


def layer(shape: tuple[int, int, int, int], bits: int = 4, hadamard: int = 0, weight_bits: int = 4) -> LinearWeight:
    outputs, columns, group, inputs = shape
    return make_weight(outputs, columns, weight_bits, bits, group, inputs, hadamard)


@every_isa
@shapes
@both_bits
@both_weights
@pytest.mark.parametrize("rows", ROWS)
def test_the_operator_is_the_references(
    isa: str, rows: int, weight_bits: int, bits: int, shape: tuple[int, int, int, int]
) -> None:
    weight = layer(shape, bits, weight_bits=weight_bits)
    x = tokens(rows, weight.spec.columns)
    bare = replace(weight, bias=None, prepared={})
    with using(isa):
        assert torch.equal(linear(x, weight), oracle(x, weight))
        assert torch.equal(linear(x, bare), oracle(x, bare))


@every_isa
@both_bits
@both_weights
@pytest.mark.parametrize("x", HARD.values(), ids=HARD.keys())
def test_the_operator_is_the_references_for_hard_rows(isa: str, x: Tensor, weight_bits: int, bits: int) -> None:
    weight = make_weight(10, 128, weight_bits, bits)
    with using(isa):
        assert torch.equal(linear(x, weight), oracle(x, weight))


@every_isa
@both_bits
@both_weights
@pytest.mark.parametrize("hadamard", [2, 8, 64, 256])
def test_the_rotated_operator_is_close_to_the_reference(isa: str, hadamard: int, weight_bits: int, bits: int) -> None:
    weight, x = layer((70, 512, 64, 64), bits, hadamard, weight_bits), tokens(40, 512)
    with using(isa):
        y = linear(x, weight)
    # Other sums in the rotation may move a value across a tie.
    assert (y - oracle(x, weight)).norm() < 2e-2 * y.norm()


@shapes
@both_bits
@both_weights
@pytest.mark.parametrize("rows", [1, 7, 16, 33, 130])
def test_all_instruction_sets_give_the_same_bits(
    rows: int, weight_bits: int, bits: int, shape: tuple[int, int, int, int]
) -> None:
    weight, results = layer(shape, bits, 64, weight_bits), []
    x = tokens(rows, weight.spec.columns)
    for isa in HERE:
        with using(isa):
            results.append(linear(x, weight))
    assert all(torch.equal(result, results[0]) for result in results)


@every_isa
@both_weights
def test_a_row_depends_neither_on_the_others_nor_on_their_number(isa: str, weight_bits: int) -> None:
    weight, x = layer((70, 1024, 64, 64), hadamard=64, weight_bits=weight_bits), tokens(300, 1024)
    with using(isa):
        together = linear(x, weight)
        for rows in (1, 3, 16, 40):
            assert torch.equal(linear(x[:rows], weight), together[:rows])
        assert torch.equal(linear(x[280:281], weight), together[280:281])


@every_isa
@both_weights
@pytest.mark.parametrize("rows", [1, 40, 200])
def test_the_number_of_threads_changes_nothing(isa: str, rows: int, weight_bits: int) -> None:
    weight, x = layer((300, 1024, 64, 64), 4, 64, weight_bits), tokens(rows, 1024)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with using(isa):
                results.append(linear(x, weight))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@every_isa
@both_weights
@pytest.mark.parametrize("rows", [0, 1, 5, 20, 150])
def test_weights_that_read_one_input_give_what_each_gives_alone(isa: str, rows: int, weight_bits: int) -> None:
    x, sizes = tokens(rows, 512), [(70, 64), (1, 16), (0, 64), (33, 128), (256, 64)]
    weights = [make_weight(outputs, 512, weight_bits, 4, group, 64, 64, outputs) for outputs, group in sizes]
    weights[1].bias = None
    with using(isa):
        together = CPU.linear(x, weights)
        for y, weight in zip(together, weights, strict=True):
            assert torch.equal(y, linear(x, weight))


def test_weights_that_read_their_inputs_in_different_ways_are_refused() -> None:
    with pytest.raises(QuotaError, match="cannot share"):
        CPU.linear(tokens(2, 128), [make_weight(8, 128, hadamard=64), make_weight(8, 128)])


@every_isa
@HALVES
@both_weights
@pytest.mark.parametrize("rows", [1, 20])
def test_half_precision_is_the_result_in_float32_rounded(
    isa: str, rows: int, weight_bits: int, dtype: torch.dtype
) -> None:
    weight, x = layer((70, 512, 64, 64), 4, 64, weight_bits), tokens(rows, 512).to(dtype)
    with using(isa):
        y, exact = linear(x, weight), linear(x.float(), weight)
    assert y.dtype == dtype
    assert torch.equal(y, exact.to(dtype))


@every_isa
@HALVES
def test_every_kind_of_number_is_rounded_as_torch_rounds_it(isa: str, dtype: torch.dtype) -> None:
    # With tokens of zero the bias comes out: random bits, numbers between two halves, and those next to them.
    bits = torch.randint(-(2**31), 2**31, (20000,), generator=torch.Generator().manual_seed(2)).to(torch.int32)
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).float()
    between = (every[:-1] + every[1:]) / 2
    edges = (between, between.nextafter(torch.tensor(torch.inf)), between.nextafter(torch.tensor(-torch.inf)))
    bias = torch.cat((bits.view(torch.float32), every, *edges))
    # Values of all zeros are not zero but in sum: the offset of a group is whole.
    weight = replace(constant(len(bias), 8, 0, 1, 8), bias=bias)
    with using(isa):
        y = linear(torch.zeros(1, 8, dtype=dtype), weight)
    assert torch.equal(y[0].nan_to_num(7), bias.to(dtype).nan_to_num(7))
    assert torch.equal(y[0].isnan(), bias.isnan())


@every_isa
@pytest.mark.parametrize("place", [0, 17, 299])
def test_a_token_that_is_not_finite_raises(isa: str, place: int) -> None:
    weight, x = layer((16, 128, 64, 64), hadamard=64), tokens(300, 128)
    x[place, 5] = torch.nan
    with using(isa), pytest.raises(QuotaError, match="NaN or infinity"):
        linear(x, weight)
    with using(isa), pytest.raises(QuotaError, match="NaN or infinity"):
        linear(x[place : place + 1], weight)


@every_isa
def test_a_view_is_read_as_it_stands(isa: str) -> None:
    weight, x = layer((16, 128, 64, 64)), tokens(128, 6)
    with using(isa):
        assert torch.equal(linear(x.T, weight), linear(x.T.contiguous(), weight))


@every_isa
@pytest.mark.parametrize("rows", [1, 2, 33])
def test_weights_of_4_and_8_bits_read_one_input(isa: str, rows: int) -> None:
    weights, x = [make_weight(70, 576, bits, hadamard=64) for bits in (4, 8)], tokens(rows, 576)
    with using(isa):
        for y, weight in zip(CPU.linear(x, weights), weights, strict=True):
            assert torch.equal(y, linear(x, weight))
