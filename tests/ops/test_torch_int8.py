"""The torch backend against the reference: equal sums, equal results up to rounding, tiles of any size."""

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
from quota.ops.interface import LinearSpec
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
    st.sampled_from([(64, 64), (128, 32), (40, 8), (6, 2), (5, 1), (512, 256)]),
    st.sampled_from([4, 8]),
    st.sampled_from([4, 8]),
    st.integers(0, 2**31 - 1),
)
@settings(max_examples=60, deadline=None)
def test_group_sums_equal_the_oracles(
    rows: int, outputs: int, sizes: tuple[int, int], bits: int, activation_bits: int, seed: int
) -> None:
    columns, group = sizes
    generator = torch.Generator().manual_seed(seed)
    q = torch.randint(0, 2**activation_bits, (rows, columns), dtype=torch.uint8, generator=generator)
    zero = torch.randint(0, 2**activation_bits, (rows, columns // group), dtype=torch.int32, generator=generator)
    packed = make_weight(outputs, columns, bits, seed=seed).packed
    sums = TorchBackend().group_sums(q, zero, packed, bits, group)
    assert torch.equal(sums, REFERENCE.group_sums(q, zero, packed, bits, group))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("bits", [4, 8], ids=["W4", "W8"])
def test_the_largest_sums_are_exact(backend: TorchBackend, bits: int, sign: int) -> None:
    q = torch.full((3, 512), 255 if sign > 0 else 0, dtype=torch.uint8)
    zero = torch.full((3, 8), 0 if sign > 0 else 255, dtype=torch.int32)
    packed = torch.zeros(2, 512 * bits // 32, dtype=torch.int32)
    sums = backend.group_sums(q, zero, packed, bits, 64)
    assert sums.unique().tolist() == [-sign * 255 * 2 ** (bits - 1) * 64]


@pytest.mark.parametrize("hadamard", [0, 32], ids=["not rotated", "rotated"])
@pytest.mark.parametrize(("bits", "activation_bits"), [(4, 4), (4, 8), (8, 4), (8, 8)], ids=lambda bits: str(bits))
@pytest.mark.parametrize("x", ROWS.values(), ids=ROWS.keys())
def test_linear_is_the_reference(
    backend: TorchBackend, x: Tensor, bits: int, activation_bits: int, hadamard: int
) -> None:
    weight = make_weight(21, 128, bits, activation_bits, hadamard=hadamard)
    torch.testing.assert_close(backend.linear(x, weight), REFERENCE.linear(x, weight), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(("x_group", "w_group"), [(64, 32), (16, 64), (128, 8)])
def test_groups_of_activations_and_weights_may_differ(backend: TorchBackend, x_group: int, w_group: int) -> None:
    weight = make_weight(21, 128, group=w_group, activation_group=x_group)
    expected = REFERENCE.linear(ROWS["random"], weight)
    torch.testing.assert_close(backend.linear(ROWS["random"], weight), expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_results_have_the_type_of_the_activations(backend: TorchBackend, dtype: torch.dtype) -> None:
    x, weight = ROWS["random"].to(dtype), make_weight(21, 128)
    assert backend.linear(x, weight).dtype == dtype
    torch.testing.assert_close(backend.linear(x, weight), REFERENCE.linear(x, weight))


def test_a_row_does_not_depend_on_the_others_or_on_the_tile(
    backend: TorchBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight = torch.randn(41, 128, generator=torch.Generator().manual_seed(0)), make_weight(21, 128)
    whole = backend.linear(x, weight)
    monkeypatch.setattr(torch_int8, "_CPU_TILE", 1)
    assert torch.equal(backend.linear(x, weight), whole)
    assert all(torch.equal(backend.linear(x[i : i + 1], weight)[0], whole[i]) for i in (0, 15, 16, 40))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_activations_that_are_not_numbers_are_an_error(backend: TorchBackend, value: float) -> None:
    x = torch.zeros(3, 128)
    x[1, 70] = value
    with pytest.raises(QuotaError, match="NaN or infinity"):
        backend.linear(x, make_weight(21, 128))


def test_what_was_prepared_is_kept(backend: TorchBackend) -> None:
    weight = make_weight(21, 128)
    backend.linear(ROWS["random"], weight)
    kept = weight.prepared["torch"]
    backend.linear(ROWS["zeros"], weight)
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
        reasons = {bits: backend.lacks(LinearSpec(8, 64, *bits, 64, 0)) for bits in [(4, 4), (4, 8), (8, 4), (8, 8)]}
    finally:
        torch_int8._products_are_exact.cache_clear()
    assert reasons[4, 4] is None
    assert "VNNI" in str(reasons[8, 8])


def test_layers_in_16_bits_are_refused(backend: TorchBackend) -> None:
    assert "4 and 8 bits" in str(backend.lacks(LinearSpec(8, 64, 4, 16, 64, 0)))


def test_a_layer_runs_on_it_when_it_is_asked_for() -> None:
    generator = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(192, 24)
    torch.nn.init.normal_(linear.weight, generator=generator)
    layer = W4A4Linear.from_linear(linear, QuantizationScheme(weight_rounding="rtn"))
    x = torch.randn(2, 5, 192, generator=generator)
    with ops.use("reference"):
        expected = layer(x)
    with ops.use("torch"), ops.record() as usage:
        torch.testing.assert_close(layer(x), expected, rtol=1e-6, atol=1e-5)
    assert usage.backends() == {"linear": ["torch"]}
