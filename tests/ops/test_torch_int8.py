"""The torch backend against the reference: the same bits, as there is one sum and what follows is in one order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.operands import ROWS, make_weight
from torch import Tensor

from quota import ops
from quota.errors import QuotaError
from quota.ops import torch_int8
from quota.ops.interface import InputSpec, LinearSpec
from quota.ops.reference import ReferenceBackend
from quota.ops.torch_int8 import TorchBackend
from quota.quantization.linear import W4A4Linear
from quota.scheme import QuantizationScheme

REFERENCE = ReferenceBackend()


@pytest.fixture
def backend() -> TorchBackend:
    return TorchBackend()


@given(
    st.sampled_from([0, 1, 2, 5, 19]),
    st.sampled_from([1, 3, 8, 33]),
    st.sampled_from([64, 128, 40, 6, 5, 512]),
    st.sampled_from([4, 8]),
    st.integers(0, 2**31 - 1),
)
@settings(max_examples=60, deadline=None)
def test_sums_equal_the_oracles(rows: int, outputs: int, columns: int, bits: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-127, 128, (rows, columns), dtype=torch.int8, generator=generator)
    weight = make_weight(outputs, columns, bits, seed=seed)
    assert torch.equal(TorchBackend().sums(values, weight), REFERENCE.sums(values, weight))


@pytest.mark.parametrize("hadamard", [0, 32], ids=["not rotated", "rotated"])
@pytest.mark.parametrize(("bits", "activation_bits"), [(4, 4), (4, 8), (8, 4), (8, 8)], ids=lambda bits: str(bits))
@pytest.mark.parametrize("x", ROWS.values(), ids=ROWS.keys())
def test_linear_is_the_reference_bit_for_bit(
    backend: TorchBackend, x: Tensor, bits: int, activation_bits: int, hadamard: int
) -> None:
    weights = [make_weight(rows, 128, bits, activation_bits, hadamard=hadamard) for rows in (21, 8)]
    for found, expected in zip(backend.linear(x, weights), REFERENCE.linear(x, weights), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(("x_group", "w_group"), [(64, 32), (16, 64), (128, 8)])
def test_groups_of_activations_and_weights_may_differ(backend: TorchBackend, x_group: int, w_group: int) -> None:
    weight = make_weight(21, 128, group=w_group, activation_group=x_group)
    [expected] = REFERENCE.linear(ROWS["random"], [weight])
    assert torch.equal(backend.linear(ROWS["random"], [weight])[0], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_results_have_the_type_of_the_activations(backend: TorchBackend, dtype: torch.dtype) -> None:
    x, weights = ROWS["random"].to(dtype), [make_weight(21, 128)]
    assert backend.linear(x, weights)[0].dtype == dtype
    assert torch.equal(backend.linear(x, weights)[0], REFERENCE.linear(x, weights)[0])


def test_a_row_does_not_depend_on_the_others(backend: TorchBackend) -> None:
    x, weights = torch.randn(41, 128, generator=torch.Generator().manual_seed(0)), [make_weight(21, 128)]
    [whole] = backend.linear(x, weights)
    assert all(torch.equal(backend.linear(x[i : i + 1], weights)[0][0], whole[i]) for i in (0, 15, 16, 40))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_activations_that_are_not_numbers_are_an_error(backend: TorchBackend, value: float) -> None:
    x = torch.zeros(3, 128)
    x[1, 70] = value
    with pytest.raises(QuotaError, match="NaN or infinity"):
        backend.linear(x, [make_weight(21, 128)])


def test_what_was_prepared_is_kept(backend: TorchBackend) -> None:
    weight = make_weight(21, 128)
    backend.linear(ROWS["random"], [weight])
    kept = weight.prepared["torch"]
    backend.linear(ROWS["zeros"], [weight])
    assert weight.prepared["torch"] is kept


def saturating(x: Tensor, weight: Tensor) -> Tensor:
    """`_int_mm` as processors without VNNI compute it: pairs of products of unsigned and signed, clamped to int16."""
    products = (x.int() + 128)[:, :, None] * weight.int()[None]
    pairs = products.unflatten(1, (-1, 2)).sum(2).clamp(-(2**15), 2**15 - 1)
    return pairs.sum(1, dtype=torch.int32) - 128 * weight.sum(0, dtype=torch.int32)


def test_layers_whose_products_would_overflow_are_refused(
    backend: TorchBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "_int_mm", saturating)
    torch_int8._products_are_exact.cache_clear()
    try:
        reason = backend.lacks(LinearSpec(8, 4, 64, InputSpec(64, 4, 64, 0)))
    finally:
        torch_int8._products_are_exact.cache_clear()
    assert "VNNI" in str(reason)


def test_layers_in_16_bits_are_refused(backend: TorchBackend) -> None:
    assert "4 and 8 bits" in str(backend.lacks(LinearSpec(8, 4, 64, InputSpec(64, 16, 64, 0))))


def test_a_layer_runs_on_it_when_it_is_asked_for() -> None:
    generator = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(192, 24)
    torch.nn.init.normal_(linear.weight, generator=generator)
    layer = W4A4Linear.from_linear(linear, QuantizationScheme(weight_rounding="rtn"))
    x = torch.randn(2, 5, 192, generator=generator)
    with ops.use("reference"):
        expected = layer(x)
    with ops.use("torch"), ops.record() as usage:
        assert torch.equal(layer(x), expected)
    assert usage.backends() == {"linear": ["torch"]}
