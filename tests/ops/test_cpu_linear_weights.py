"""Which layers the C++ linear operator has, and what it prepares of their weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.instruction_sets import needs_library
from support.operands import constant, make_weight
from torch import Tensor

from quota.errors import QuotaError
from quota.ops.cpu import CpuBackend
from quota.ops.cpu import linear as module
from quota.ops.interface import InputSpec, LinearSpec

pytestmark = needs_library

CPU = CpuBackend()


def test_nothing_but_the_steps_is_prepared() -> None:
    weight = make_weight(37, 192)
    CPU.linear(torch.randn(2, 192), [weight])
    prepared = weight.prepared["cpu"].steps
    assert prepared.shape == (3, 3, 16) and prepared.dtype == torch.uint8
    assert torch.equal(prepared.transpose(1, 2).reshape(48, 3)[:37], weight.step)


def test_two_threads_that_are_first_read_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one has prepared, and reads by its address, another that prepares it too does not put away."""
    weight, prepare, taken = make_weight(37, 192), module._prepared, []
    y = torch.empty(1, 37)

    def interrupted(step: Tensor) -> Tensor:
        if not taken:
            taken.append(None)
            # Another thread comes and goes.
            taken.append(module._fields(weight, y))
        return prepare(step)

    monkeypatch.setattr(module, "_prepared", interrupted)
    assert module._fields(weight, y) == taken[1]
    assert taken[1][1] == weight.prepared["cpu"].steps.data_ptr()


def test_nothing_is_prepared_for_weights_without_steps() -> None:
    weight = make_weight(37, 192, 8)
    CPU.linear(torch.randn(2, 192), [weight])
    assert weight.prepared["cpu"].steps is None


def test_what_has_moved_is_checked_again() -> None:
    weight, x = make_weight(37, 192), torch.randn(2, 192)
    before = CPU.linear(x, [weight])
    weight.packed.set_(weight.packed.clone())  # pyright: ignore[reportArgumentType]
    assert torch.equal(CPU.linear(x, [weight])[0], before[0])
    weight.packed.set_(torch.zeros(3, dtype=torch.int32))  # pyright: ignore[reportArgumentType]
    with pytest.raises(QuotaError, match="packed weights"):
        CPU.linear(x, [weight])


def test_other_sizes_are_checked_though_the_tensors_are_the_same() -> None:
    weight, x = make_weight(37, 192), torch.randn(2, 192)
    CPU.linear(x, [weight])
    with pytest.raises(QuotaError, match="packed weights"):
        CPU.linear(x, [replace(weight, spec=replace(weight.spec, rows=64))])


def spec(bits: int = 4, group: int = 64, columns: int = 64, inputs: int = 4, inputs_group: int = 64) -> LinearSpec:
    return LinearSpec(8, bits, group, InputSpec(columns, inputs, inputs_group, 0))


@pytest.mark.parametrize(
    ("lacking", "reason"),
    [
        (spec(bits=3), "4- and 8-bit weights, not 3"),
        (spec(bits=8, columns=128), "8-bit weights with one scale a row, not in groups of 64"),
        (spec(bits=8, columns=12, group=12, inputs_group=4), "multiples of 8 input channels, not 12"),
        (spec(bits=8, columns=1 << 17, group=1 << 17), "sums over 131072 channels do not fit"),
        (spec(inputs=16), "4- and 8-bit activations, not 16"),
        (spec(columns=12, group=8, inputs_group=4), "multiples of 8 input channels, not 12"),
        (spec(group=4), "weight groups of 8 to 256 channels, not 4"),
        (spec(columns=96, group=24), "weight groups of 8 to 256 channels, not 24"),
        (spec(inputs_group=4), "groups of 8 to 256 channels, not 4"),
        (spec(columns=1 << 17), "sums over 131072 channels do not fit"),
    ],
    ids=[
        *("W3", "W8 in groups", "W8, 12 channels", "W8, 131072 channels"),
        *("A16", "12 channels", "weight groups of 4", "weight groups of 24", "groups of 4", "131072 channels"),
    ],
)
def test_it_says_which_layers_it_lacks(lacking: LinearSpec, reason: str) -> None:
    assert reason in str(CPU.lacks(lacking))


@pytest.mark.parametrize("weight_bits", [4, 8], ids=["W4", "W8"])
def test_it_has_w4a4_w4a8_w8a4_and_w8a8(weight_bits: int) -> None:
    assert CPU.lacks(spec(weight_bits)) is None
    assert CPU.lacks(spec(weight_bits, inputs=8)) is None
    # One scale a token: the group of 8-bit activations does not matter.
    assert CPU.lacks(spec(weight_bits, inputs=8, inputs_group=4)) is None
    # As many channels as some have: the row is the group.
    assert CPU.lacks(spec(8, columns=4104, group=4104, inputs_group=8)) is None


def test_wide_layers_and_narrow_groups_raise_where_nobody_asked_what_it_lacks() -> None:
    narrow = make_weight(8, 64, group=4)
    with pytest.raises(QuotaError, match="weight groups of 8 to 256 channels, not 4"):
        CPU.linear(torch.randn(1, 64), [narrow])
    grouped = replace(make_weight(8, 128, 8), spec=replace(make_weight(8, 128, 8).spec, group=64))
    with pytest.raises(QuotaError, match="one scale a row, not in groups of 64"):
        CPU.linear(torch.randn(1, 128), [grouped])
    for wide in (constant(1, 1 << 17, 1, 1, 64), constant(1, 1 << 17, 1, 1, 1 << 17, bits=8)):
        with pytest.raises(QuotaError, match="not made for such sizes"):
            CPU.linear(torch.randn(1, 1 << 17), [wide])
