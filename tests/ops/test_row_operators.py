"""Norms, activations and gates: the definitions are what transformers computes, and the C++ kernels are the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.instruction_sets import HERE, every_isa, needs_library, using
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from quota.errors import QuotaError
from quota.ops.cpu import rows as fast
from quota.ops.interface import ACTIVATIONS, NormSpec
from quota.ops.reference import rows as naive

# How far the kernels may be from the definitions, relative to the largest number that goes into a result: sums in
# another order in float32, one rounding in the half types.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}
TRUE: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": lambda x: x * x.sigmoid(),
    "gelu": lambda x: x * torch.special.ndtr(x),
    "gelu_tanh": lambda x: x * (2 * (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)).sigmoid(),
    "quick_gelu": lambda x: x * (1.702 * x).sigmoid(),
}
PLAIN, OFFSET, CENTRED = NormSpec(1e-6), NormSpec(1e-6, offset=True), NormSpec(1e-5, centred=True)

dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "bfloat16", "float16"])
activations = pytest.mark.parametrize("activation", ACTIVATIONS)
specs = pytest.mark.parametrize("spec", [PLAIN, OFFSET, CENTRED], ids=["plain", "offset", "centred"])


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def spread(dtype: torch.dtype) -> Tensor:
    """Where activations bend, where they are nearly nothing, and where exponentials leave float32."""
    return torch.cat([torch.linspace(-end, end, 4001) for end in (1e-3, 1, 7, 95)]).to(dtype)


def assert_near(found: Tensor, expected: Tensor, size: Tensor) -> None:
    """Each number is as far from what is expected as `TOLERANCE` allows for results of numbers of this `size`."""
    assert found.dtype == expected.dtype and found.shape == expected.shape
    assert torch.equal(found.isnan(), expected.isnan())
    same = (found == expected) | found.isnan()
    far = (found.float() - expected.float()).abs() > TOLERANCE[found.dtype] * size.float()
    assert not (far & ~same).any()


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dtypes
@pytest.mark.parametrize(
    ("module", "spec"),
    [
        pytest.param(LlamaRMSNorm(40, eps=1e-6), PLAIN, id="Llama"),
        pytest.param(Gemma3RMSNorm(40, eps=1e-6), OFFSET, id="Gemma"),
        pytest.param(nn.LayerNorm(40), CENTRED, id="LayerNorm"),
        pytest.param(nn.LayerNorm(40, bias=False), CENTRED, id="LayerNorm without bias"),
    ],
)
@torch.no_grad()
def test_a_norm_is_defined_as_in_transformers(module: Any, spec: NormSpec, dtype: torch.dtype) -> None:
    module = module.to(dtype)
    for seed, parameter in enumerate(module.parameters()):
        parameter.copy_(drawn(40, seed=seed))
    x = (drawn(2, 7, 40) * 3 + 1).to(dtype)
    found = naive.norm(x, module.weight, getattr(module, "bias", None), spec)
    assert found.dtype == dtype and torch.equal(found, module(x))


@dtypes
@pytest.mark.parametrize(
    ("name", "activation"),
    [("silu", "silu"), ("gelu", "gelu"), ("gelu_pytorch_tanh", "gelu_tanh"), ("quick_gelu", "quick_gelu")],
)
def test_an_activation_is_defined_as_in_transformers(name: str, activation: str, dtype: torch.dtype) -> None:
    x, up = spread(dtype), drawn(4 * 4001).to(dtype)
    module = ACT2FN[name]
    assert torch.equal(naive.activate(x, activation), module(x))
    assert torch.equal(naive.gated(x, up, activation), module(x) * up)


@st.composite
def norms(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor | None, NormSpec]:
    """Rows of odd widths; ordinary, huge and tiny ones, far from zero, constant or all zero."""
    dtype = draw(st.sampled_from(list(TOLERANCE)))
    rows, columns = draw(st.integers(0, 5)), draw(st.integers(1, 300))
    huge = 1e4 if dtype == torch.float16 else 1e15
    scale = torch.tensor(draw(st.lists(st.sampled_from([0, 1e-20, 1e-3, 1, huge]), min_size=rows, max_size=rows)))
    shift = torch.tensor(draw(st.lists(st.sampled_from([0.0, 0.0, 1.0, -10.0]), min_size=rows, max_size=rows)))
    seed = draw(st.integers(0, 1000))
    x = drawn(rows, columns, seed=seed).clamp(-4, 4) * scale[:, None] + shift[:, None]
    weight, bias = drawn(columns, seed=seed + 1).to(dtype), drawn(columns, seed=seed + 2).to(dtype)
    spec = draw(st.sampled_from([PLAIN, OFFSET, CENTRED]))
    return x.to(dtype), weight, bias if spec.centred and draw(st.booleans()) else None, spec


@needs_library
@given(norms(), st.sampled_from(HERE or ("portable",)))
def test_the_norm_is_its_definition(operands: tuple[Tensor, Tensor, Tensor | None, NormSpec], isa: str) -> None:
    x, weight, bias, spec = operands
    with using(isa):
        found = fast.norm(x, weight, bias, spec)
    expected = naive.norm(x, weight, bias, spec)
    # A mean is known to so many digits of itself, and so are differences from it.
    square = (x.double() - x.double().mean(-1, keepdim=True)).square().mean(-1, keepdim=True)
    deviation = (square + spec.eps).sqrt()
    lost = (x.double().abs() / deviation + 1) * weight.double().abs() if spec.centred else 0
    size = expected.double().abs() + (0 if bias is None else bias.double().abs()) + lost
    assert_near(found, expected, size if x.dtype == torch.float32 else size.clamp(min=1e-3))


@every_isa
@dtypes
@activations
def test_the_activation_is_its_definition(activation: str, dtype: torch.dtype, isa: str) -> None:
    x = spread(dtype)
    # Products far from what half types round to nothing.
    up = drawn(x.numel(), seed=1).to(dtype)
    with using(isa):
        found, product = fast.activate(x, activation), fast.gated(x, up, activation)
    assert_near(found, naive.activate(x, activation), x.abs())
    assert_near(product, naive.gated(x, up, activation), (x.float() * up.float()).abs().clamp(min=1e-6))


@every_isa
@activations
def test_the_activation_is_true_to_so_many_digits(activation: str, isa: str) -> None:
    x = spread(torch.float32)
    with using(isa):
        found = fast.activate(x, activation).double()
    true = TRUE[activation](x.double())
    error = (found - true).abs()
    # Two units in the last place of an exponential, and one each of an addition and a division.
    assert (error <= 4 * 2**-24 * x.abs()).all()
    # Relative to themselves the results are right for as long as there is a float32 or, for the gelus, a use for it.
    tail = (x < 0) & (x > {"silu": -80, "quick_gelu": -45}.get(activation, -5.5))
    assert (error[tail] <= 1e-5 * true[tail].abs()).all()


@every_isa
def test_the_exponential_is_right_to_less_than_two_units(isa: str) -> None:
    # x / (1 + e^-x), where only the exponential of the sum is left: three roundings behind it are half a unit each.
    x = -torch.linspace(17, 85, 100_003)
    with using(isa):
        found = fast.activate(x, "silu").double()
    true = TRUE["silu"](x.double())
    unit = 2.0 ** (true.abs().log2().floor() - 23)
    assert ((found - true).abs() / unit).max() < 2 + 1.5


@every_isa
@activations
def test_an_activation_of_what_is_not_finite_is_as_in_torch(activation: str, isa: str) -> None:
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1e-40, -1e-40, 3e38, -3e38])
    with using(isa):
        for dtype in (torch.float32, torch.bfloat16):
            found, expected = fast.activate(x.to(dtype), activation), naive.activate(x.to(dtype), activation)
            # Torch's gelu makes NaN of infinity, and infinity of 3e38.
            rounded = expected.isfinite()
            assert rounded[3:8].all() or activation == "gelu"
            torch.testing.assert_close(found[rounded], expected[rounded], rtol=1e-2, atol=1e-44)
            assert torch.equal(found.signbit()[rounded], expected.signbit()[rounded])
            assert found[0].isnan() and found[2].isnan() and found[1] > 1e38 and found[7] > 2e38


@every_isa
@specs
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_is_as_in_torch_and_alone(spec: NormSpec, bad: float, isa: str) -> None:
    x, weight = drawn(3, 37), drawn(37, seed=1)
    x[1, 20] = bad
    with using(isa):
        found = fast.norm(x, weight, None, spec)
    expected = naive.norm(x, weight, None, spec)
    assert torch.equal(found.isnan(), expected.isnan()) and found[1].isnan().any()
    assert not found[::2].isnan().any()


@every_isa
@dtypes
def test_a_row_depends_on_nothing_else(dtype: torch.dtype, isa: str) -> None:
    x, weight, bias = (drawn(*shape).to(dtype) for shape in ((301, 131), (131,), (131,)))
    for spec in (PLAIN, OFFSET, CENTRED):
        given = weight, bias if spec.centred else None, spec
        with using(isa), threads(1):
            whole = fast.norm(x, *given)
            assert torch.equal(fast.norm(x[7:8], *given), whole[7:8])
        for count in (2, 3):
            with using(isa), threads(count):
                assert torch.equal(fast.norm(x, *given), whole)


@every_isa
@dtypes
@activations
def test_a_number_depends_on_nothing_else(activation: str, dtype: torch.dtype, isa: str) -> None:
    x, up = drawn(301, 131).to(dtype), drawn(301, 131, seed=1).to(dtype)
    with using(isa), threads(1):
        whole, product = fast.activate(x, activation), fast.gated(x, up, activation)
        assert torch.equal(fast.activate(x[7, 5:9], activation), whole[7, 5:9])
        assert torch.equal(fast.gated(x[7, 5:9], up[7, 5:9], activation), product[7, 5:9])
    for count in (2, 3):
        with using(isa), threads(count):
            assert torch.equal(fast.activate(x, activation), whole)
            assert torch.equal(fast.gated(x, up, activation), product)


@needs_library
@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8), (1, 8), (8,), (3, 0)])
def test_any_shape_and_none(shape: tuple[int, ...]) -> None:
    x, weight = drawn(*shape), drawn(shape[-1])
    torch.testing.assert_close(fast.norm(x, weight, None, PLAIN), naive.norm(x, weight, None, PLAIN))
    torch.testing.assert_close(fast.activate(x, "silu"), naive.activate(x, "silu"))
    torch.testing.assert_close(fast.gated(x, x, "gelu"), naive.gated(x, x, "gelu"))


@needs_library
def test_columns_may_lie_apart() -> None:
    x, weight = drawn(8, 5).T, drawn(8)
    torch.testing.assert_close(fast.norm(x, weight, None, PLAIN), naive.norm(x, weight, None, PLAIN))
    torch.testing.assert_close(fast.gated(x, x.contiguous(), "silu"), naive.gated(x, x, "silu"))


@needs_library
@pytest.mark.parametrize(
    ("call", "says"),
    [
        pytest.param(lambda: fast.norm(drawn(3, 8), drawn(7), None, PLAIN), "the norm's weight", id="weight"),
        pytest.param(lambda: fast.norm(drawn(3, 8), drawn(8).bfloat16(), None, PLAIN), "weight", id="weight's type"),
        pytest.param(lambda: fast.norm(drawn(3, 8), drawn(8), drawn(9), CENTRED), "the norm's bias", id="bias"),
        pytest.param(lambda: fast.norm(drawn(3, 8).double(), drawn(8).double(), None, PLAIN), "rows", id="float64"),
        pytest.param(lambda: fast.gated(drawn(3, 8), drawn(3, 7), "silu"), "what is gated", id="shape of up"),
        pytest.param(lambda: fast.gated(drawn(3, 8), drawn(3, 8).half(), "silu"), "what is gated", id="type of up"),
        pytest.param(lambda: fast.activate(drawn(3, 8).int(), "silu"), "takes x as", id="integers"),
    ],
)
def test_what_does_not_fit_is_named(call: Callable[[], Tensor], says: str) -> None:
    with pytest.raises(QuotaError, match=says):
        call()
