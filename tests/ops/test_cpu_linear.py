"""The C++ linear operator against the reference, on every instruction set that this machine has.

The integer sums are the oracle's exactly. Behind them AVX2, AVX512 and AMX add the groups in the same order with the
same roundings, so their results are equal to the last bit; the portable path rounds once more for every group.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quota.ops.integer import pack_int32, quantize_weight
from support.instruction_sets import HERE, every_isa, needs_library, using
from torch import Tensor

from quota.errors import QuotaError
from quota.ops.cpu import CpuBackend
from quota.ops.interface import LinearSpec, LinearWeight
from quota.ops.reference import ReferenceBackend

pytestmark = needs_library

CPU, REFERENCE = CpuBackend(), ReferenceBackend()
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Rows in and about the pieces in which they are worked on: four tokens, a tile of 16, a chunk of 256.
ROWS = [0, 1, 2, 4, 7, 8, 16, 33]


def layer(
    outputs: int, columns: int, group: int = 64, weight_group: int = 64, hadamard: int = 0, bias: bool = False
) -> LinearWeight:
    generator = torch.Generator().manual_seed(0)
    w, scale = quantize_weight(torch.randn(outputs, columns, generator=generator), 4, weight_group)
    added = torch.randn(outputs, generator=generator) if bias else None
    spec = LinearSpec(outputs, columns, 4, 4, group, hadamard)
    return LinearWeight(spec, pack_int32(w, 4), scale.to(torch.bfloat16), added)


def tokens(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))


@given(
    st.integers(0, 2**31 - 1),
    st.sampled_from(ROWS),
    st.sampled_from([1, 5, 16, 17, 70]),
    st.sampled_from([(8, 8), (40, 8), (48, 16), (96, 32), (64, 64), (128, 16), (704, 64)]),
)
@settings(max_examples=60, deadline=None)
def test_group_sums_equal_the_oracles(seed: int, rows: int, outputs: int, sizes: tuple[int, int]) -> None:
    columns, group = sizes
    generator = torch.Generator().manual_seed(seed)
    q = torch.randint(0, 16, (rows, columns), generator=generator, dtype=torch.uint8)
    zero = torch.randint(0, 16, (rows, columns // group), generator=generator, dtype=torch.int32)
    packed = pack_int32(torch.randint(-8, 8, (outputs, columns), generator=generator, dtype=torch.int8), 4)
    expected = REFERENCE.group_sums(q, zero, packed, 4, group)
    for isa in HERE:
        with using(isa):
            assert torch.equal(CPU.group_sums(q, zero, packed, 4, group), expected)


@every_isa
@pytest.mark.parametrize("rows", [1, 16], ids=["one token", "a tile"])
@pytest.mark.parametrize(("q", "zero", "w"), [(15, 0, -8), (0, 15, -8), (15, 0, 7), (0, 15, 7)])
def test_the_largest_sums_that_can_occur_are_exact(isa: str, rows: int, q: int, zero: int, w: int) -> None:
    packed = pack_int32(torch.full((16, 128), w, dtype=torch.int8), 4)
    codes, zeros = torch.full((rows, 128), q, dtype=torch.uint8), torch.full((rows, 2), zero, dtype=torch.int32)
    with using(isa):
        sums = CPU.group_sums(codes, zeros, packed, 4, 64)
    assert torch.equal(sums, torch.full((rows, 16, 2), 64 * (q - zero) * w, dtype=torch.int32))


SHAPES = {
    "one chunk": layer(16, 64),
    "odd outputs, bias": layer(37, 192, bias=True),
    "many outputs": layer(200, 1024),
    "groups of 8": layer(9, 40, 8, 8, bias=True),
    "groups of 16": layer(9, 48, 16, 16),
    "groups of 32": layer(33, 96, 32, 32, bias=True),
    "wider activation groups": layer(20, 512, 256, 64),
    "wider weight groups": layer(20, 512, 64, 128, bias=True),
    "narrower weight groups": layer(20, 512, 64, 16),
    "wide groups": layer(20, 512, 128, 256),
}


@every_isa
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("weight", SHAPES.values(), ids=SHAPES.keys())
def test_the_operator_is_the_references(isa: str, weight: LinearWeight, rows: int) -> None:
    x = tokens(rows, weight.spec.columns)
    with using(isa):
        torch.testing.assert_close(CPU.linear(x, weight), REFERENCE.linear(x, weight), rtol=1e-5, atol=1e-4)


@every_isa
@pytest.mark.parametrize("hadamard", [8, 64, 256])
def test_the_rotated_operator_is_close_to_the_reference(isa: str, hadamard: int) -> None:
    weight, x = layer(70, 512, hadamard=hadamard), tokens(40, 512)
    with using(isa):
        y = CPU.linear(x, weight)
    # Other sums in the rotation may move a code across a tie.
    assert (y - REFERENCE.linear(x, weight)).norm() < 1e-3 * y.norm()


@pytest.mark.parametrize("rows", [1, 7, 16, 33, 300])
@pytest.mark.parametrize("weight", [SHAPES["odd outputs, bias"], SHAPES["groups of 16"]], ids=["64", "16"])
def test_all_wide_paths_give_the_same_bits(weight: LinearWeight, rows: int) -> None:
    x, results = tokens(rows, weight.spec.columns), []
    for isa in HERE[1:]:
        with using(isa):
            results.append(CPU.linear(x, weight))
    assert all(torch.equal(result, results[0]) for result in results)


@every_isa
def test_a_row_depends_neither_on_the_others_nor_on_their_number(isa: str) -> None:
    weight, x = layer(70, 1024, hadamard=64, bias=True), tokens(300, 1024)
    with using(isa):
        together = CPU.linear(x, weight)
        for rows in (1, 3, 16, 40):
            assert torch.equal(CPU.linear(x[:rows], weight), together[:rows])
        assert torch.equal(CPU.linear(x[280:281], weight), together[280:281])


@every_isa
@pytest.mark.parametrize("rows", [1, 40])
def test_the_number_of_threads_changes_nothing(isa: str, rows: int) -> None:
    weight, x, before = layer(300, 1024, hadamard=64), tokens(rows, 1024), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with using(isa):
                results.append(CPU.linear(x, weight))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@every_isa
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_half_precision_is_the_result_in_float32_rounded(isa: str, dtype: torch.dtype) -> None:
    weight, x = layer(70, 512, hadamard=64, bias=True), tokens(20, 512).to(dtype)
    with using(isa):
        y, exact = CPU.linear(x, weight), CPU.linear(x.float(), weight)
    assert y.dtype == dtype
    assert torch.equal(y, exact.to(dtype))


@every_isa
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_every_kind_of_number_is_rounded_as_torch_rounds_it(isa: str, dtype: torch.dtype) -> None:
    # With tokens of zero the bias comes out: random bits, numbers between two halves, and those next to them.
    bits = torch.randint(-(2**31), 2**31, (20000,), generator=torch.Generator().manual_seed(2)).to(torch.int32)
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).float()
    between = (every[:-1] + every[1:]) / 2
    edges = (between, between.nextafter(torch.tensor(torch.inf)), between.nextafter(torch.tensor(-torch.inf)))
    bias = torch.cat((bits.view(torch.float32), every, *edges))
    weight = layer(len(bias), 8, 8, 8)
    weight.bias = bias
    with using(isa):
        y = CPU.linear(torch.zeros(1, 8, dtype=dtype), weight)
    assert torch.equal(y[0].nan_to_num(7), bias.to(dtype).nan_to_num(7))
    assert torch.equal(y[0].isnan(), bias.isnan())


@every_isa
def test_a_token_that_is_not_finite_raises(isa: str) -> None:
    weight, x = layer(16, 128, hadamard=64), tokens(300, 128)
    x[299, 5] = torch.nan
    with using(isa), pytest.raises(QuotaError, match="NaN or infinity"):
        CPU.linear(x, weight)


@every_isa
def test_a_view_is_read_as_it_stands(isa: str) -> None:
    weight, x = layer(16, 128), tokens(128, 6)
    with using(isa):
        assert torch.equal(CPU.linear(x.T, weight), CPU.linear(x.T.contiguous(), weight))


def test_scales_of_a_converted_model_are_the_same() -> None:
    weight, x = layer(16, 128), tokens(2, 128)
    converted = LinearWeight(weight.spec, weight.packed, weight.scale.float(), None)
    assert torch.equal(CPU.linear(x, weight), CPU.linear(x, converted))


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (LinearSpec(8, 64, 8, 4, 64, 0), "W8A4"),
        (LinearSpec(8, 64, 4, 8, 64, 0), "W4A8"),
        (LinearSpec(8, 64, 4, 16, 64, 0), "W4A16"),
        (LinearSpec(8, 12, 4, 4, 4, 0), "multiples of 8 input channels, not 12"),
        (LinearSpec(8, 64, 4, 4, 4, 0), "groups of 8 to 256 channels, not 4"),
    ],
    ids=["W8", "A8", "A16", "12 channels", "groups of 4"],
)
def test_it_says_which_layers_it_lacks(spec: LinearSpec, reason: str) -> None:
    assert reason in str(CPU.lacks(spec))
    assert CPU.lacks(LinearSpec(8, 64, 4, 4, 64, 64)) is None


def test_narrow_weight_groups_raise() -> None:
    with pytest.raises(QuotaError, match="weight groups of 8"):
        CPU.linear(tokens(1, 64), layer(8, 64, weight_group=4))
