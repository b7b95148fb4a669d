"""What a quantised layer hands to the backends: made once, and anew when a buffer changes."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from support.layers import expected_output, random_input, random_linear

from quota.quantization.linear import W4A4Linear
from quota.scheme import QuantizationScheme

RTN = QuantizationScheme(weight_rounding="rtn")


def test_the_operand_is_made_once_and_kept() -> None:
    layer = W4A4Linear.from_linear(random_linear(), RTN)
    made = layer._operand()
    layer(random_input(2, 128))
    assert layer._operand() is made
    assert made.packed is layer.weight_packed


def replace_weights(layer: W4A4Linear) -> None:
    layer.weight_packed = layer.weight_packed.flip(0)


def write_weights(layer: W4A4Linear) -> None:
    layer.load_state_dict(W4A4Linear.from_linear(random_linear(bias=True), RTN).state_dict())


def replace_scale(layer: W4A4Linear) -> None:
    layer.weight_scale = layer.weight_scale * 2


def write_bias(layer: W4A4Linear) -> None:
    layer.bias.add_(1)


def replace_data(layer: W4A4Linear) -> None:
    layer.weight_packed.data = layer.weight_packed.flip(0)


def drop_bias(layer: W4A4Linear) -> None:
    layer.bias = None


@pytest.mark.parametrize(
    "change",
    [replace_weights, write_weights, replace_scale, write_bias, replace_data, drop_bias],
    ids=lambda f: f.__name__,
)
def test_the_operand_follows_the_buffers(change) -> None:
    layer = W4A4Linear.from_linear(random_linear(bias=True), RTN)
    x = random_input(2, 128)
    layer(x)
    before = layer._operand()
    before.prepared["made up"] = "stale"
    change(layer)
    assert layer._operand() is not before and not layer._operand().prepared
    torch.testing.assert_close(layer(x).double(), expected_output(layer, x), rtol=1e-5, atol=1e-5)


def test_what_a_backend_prepared_is_neither_copied_nor_pickled() -> None:
    layer = W4A4Linear.from_linear(random_linear(), RTN)
    layer._operand().prepared["made up"] = (number for number in range(3))
    x = random_input(2, 128)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert not other._operand().prepared
        assert torch.equal(other(x), layer(x))
