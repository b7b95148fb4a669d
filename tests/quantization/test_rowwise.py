"""Norms, gated products and activations are found by what they compute; all else stays what it was, and is named."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from support.families import TINY
from support.families.family import TinyFamily
from support.tiny_llava import make_model, make_samples, processor
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForImageTextToText
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import quota
from quota import ops
from quota.models import FAMILIES
from quota.ops.interface import NormSpec
from quota.quantization.rowwise import RowOperators, attach_rows
from quota.scheme import QuantizationScheme

WIDTH = 24


class Rms(nn.Module):
    """As Llama's, under names of its own; `offset` makes it Gemma's."""

    def __init__(self, offset: bool = False, power: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))
        self.tiny, self.offset, self.power = 1e-5, offset, power

    def forward(self, states: Tensor) -> Tensor:
        wide = states.float()
        wide = wide / (wide.pow(2).mean(-1, keepdim=True) + self.tiny).sqrt()
        if self.offset:
            return (wide * (1 + self.weight.float())).to(states.dtype)
        return self.weight**self.power * wide.to(states.dtype)


class Mlp(nn.Module):
    """A gated MLP; `times` is what others do besides."""

    def __init__(self, function: Any = None, times: float = 1, residual: bool = False) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(WIDTH, 40), nn.Linear(WIDTH, 40)
        self.down_proj = nn.Linear(40, WIDTH)
        self.squash = function or nn.SiLU()
        self.times, self.residual = times, residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.down_proj(self.squash(self.gate_proj(x)) * self.up_proj(x) * self.times)
        return y + x if self.residual else y


class Shifted(nn.LayerNorm):
    """A LayerNorm with one weight more."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.shift = nn.Parameter(torch.ones(width))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + self.shift


class Mixed(nn.Module):
    """An activation that looks at neighbours."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.silu(x + x.mean(1, keepdim=True))


def computed(module: nn.Module) -> list[Any]:
    """What the operators for `module` were found to be; None where there are none."""
    replaced: list[Any] = attach_rows(nn.Sequential(module)).replaced
    return [each.compute and each.compute.args[0] for each in replaced]


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        pytest.param(Rms(), NormSpec(1e-5), id="RMSNorm"),
        pytest.param(Rms(offset=True), NormSpec(1e-5, offset=True), id="1 + weight"),
        pytest.param(LlamaRMSNorm(WIDTH, eps=1e-6).bfloat16(), NormSpec(1e-6), id="Llama's, bfloat16"),
        pytest.param(nn.LayerNorm(WIDTH, eps=1e-3), NormSpec(1e-3, centred=True), id="LayerNorm"),
        pytest.param(nn.LayerNorm(WIDTH, bias=False), NormSpec(1e-5, centred=True), id="LayerNorm without bias"),
        pytest.param(ACT2FN["quick_gelu"], "quick_gelu", id="quick_gelu"),
        pytest.param(ACT2FN["gelu_new"], "gelu_tanh", id="gelu_new, written out"),
        pytest.param(nn.GELU(), "gelu", id="gelu"),
        pytest.param(nn.GELU("tanh"), "gelu_tanh", id="gelu, tanh"),
        pytest.param(Mlp(), "silu", id="gated SiLU"),
        pytest.param(Mlp(nn.GELU()), "gelu", id="gated gelu"),
    ],
)
def test_what_is_found(module: nn.Module, expected: Any) -> None:
    assert computed(module) == [expected]


@pytest.mark.parametrize(
    "module",
    [
        pytest.param(Rms(power=2), id="another use of the weight"),
        pytest.param(Shifted(WIDTH), id="a norm with something more"),
        pytest.param(nn.ReLU(), id="an activation that has no operator"),
        pytest.param(nn.Softmax(dim=-1), id="no activation"),
        pytest.param(Mixed(), id="of more than one token"),
        pytest.param(Mlp(times=1.01), id="a product with something else"),
        pytest.param(Mlp(residual=True), id="a residual inside"),
    ],
)
def test_what_is_named(module: nn.Module) -> None:
    model = nn.Sequential(module).eval()
    x = torch.randn(2, 5, WIDTH)
    expected = model(x)
    rows = attach_rows(model)
    with ops.record() as used:
        # The activation inside an MLP is an operator by itself.
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)
    name = type(module).__name__
    assert rows.unknown == {name}
    assert f"rows: {name} is none that is known" in str(used)


@pytest.mark.parametrize(
    "module",
    [
        nn.Dropout(0.5),
        nn.Identity(),
        nn.Linear(WIDTH, WIDTH),
        nn.Embedding(8, WIDTH),
        nn.Conv2d(3, 4, 1),
        nn.BatchNorm1d(WIDTH),
        nn.AvgPool1d(2),
        nn.ModuleList(),
    ],
    ids=lambda module: type(module).__name__,
)
def test_what_is_no_such_module_is_left_alone(module: nn.Module) -> None:
    assert computed(module) == []


def test_a_module_whose_forward_another_has_replaced_is_left_alone() -> None:
    module = Rms()
    module.forward = lambda states: states  # As accelerate does for devices, and kernels from the hub.
    assert computed(module) == []


@pytest.fixture
def block() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Rms(), Mlp(), nn.LayerNorm(WIDTH), nn.GELU()).eval()


X = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_it_computes_the_same_and_says_by_what(block: nn.Sequential) -> None:
    expected = block(X)
    attach_rows(block)
    with ops.record() as used:
        torch.testing.assert_close(block(X), expected, rtol=1e-5, atol=1e-6)
    assert used.calls["rows", ops.backend().name] == 4
    with ops.use("reference"), ops.record() as used:
        torch.testing.assert_close(block(X), expected, rtol=1e-5, atol=1e-6)
    assert used.backends()["rows"] == ["reference"]


@torch.no_grad()
def test_probing_touches_nothing(block: nn.Sequential) -> None:
    called = []
    for module in block.modules():
        module.register_forward_hook(lambda *_: called.append(1))
    before = copy.deepcopy(block.state_dict())
    state = torch.get_rng_state()
    attach_rows(block)
    assert not called and torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())


@torch.no_grad()
def test_weights_are_those_of_the_moment(block: nn.Sequential) -> None:
    attach_rows(block)
    other: Any = copy.deepcopy(block)
    other.quota_rows.detach()
    for change in (lambda norm: norm.weight.mul_(3), lambda norm: setattr(norm.weight, "data", torch.rand(WIDTH))):
        for model in (block, other):
            torch.manual_seed(2)
            change(model[0])
            change(model[2])
        torch.testing.assert_close(block(X), other(X), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_hooks_stay_around(block: nn.Sequential) -> None:
    seen = []
    block[0].register_forward_hook(lambda module, args, output: seen.append(output))
    mlp: Any = block[1]
    mlp.gate_proj.register_forward_hook(lambda module, args, output: seen.append(output))
    attach_rows(block)
    block(X)
    assert [output.shape[-1] for output in seen] == [WIDTH, 40]
    mlp.squash.register_forward_hook(lambda module, args, output: seen.append(output))
    block(X)
    assert len(seen) == 5


@torch.no_grad()
def test_a_copy_is_its_own(block: nn.Sequential) -> None:
    names = list(block.state_dict())
    attach_rows(block)
    other: Any = copy.deepcopy(block)
    assert list(other.state_dict()) == names
    assert other[0].forward.module is other[0] and other.quota_rows.model is other
    other[0].weight.zero_()
    assert torch.equal(block(X), block(X)) and not torch.equal(other(X), block(X))
    other.quota_rows.detach()
    assert "forward" not in other[0].__dict__ and "forward" in block[0].__dict__


@torch.no_grad()
def test_it_is_undone_by_one_call(block: nn.Sequential) -> None:
    before = {name: dict(module.__dict__) for name, module in block.named_modules()}
    expected = block(X)
    attach_rows(block)
    attach_rows(block).detach()
    assert {name: dict(module.__dict__) for name, module in block.named_modules()} == before
    assert torch.equal(block(X), expected)


@pytest.mark.parametrize("why", ["training", "autocast", "float64", "two types"])
def test_what_is_not_inference_runs_the_modules_own_code(why: str, block: nn.Sequential) -> None:
    model, x = nn.Sequential(block[0], block[3]), X
    model.train(why == "training")
    if why in ("float64", "two types"):
        x = X.double()
    if why == "float64":
        model = model.double()
    attach_rows(model)
    with torch.autocast("cpu", enabled=why == "autocast"), ops.record() as used:
        output = model(x)
    assert not used.calls
    assert output.requires_grad


@torch.no_grad()
def test_a_model_may_be_cast_afterwards(block: nn.Sequential) -> None:
    expected = copy.deepcopy(block).bfloat16()(X.bfloat16())
    attach_rows(block)
    block.bfloat16()
    torch.testing.assert_close(block(X.bfloat16()), expected, rtol=2**-6, atol=2**-6)


def batch_of(tiny: TinyFamily, dtype: torch.dtype) -> dict[str, Tensor]:
    small, large = tiny.sizes
    batch = tiny.batch([tiny.prompt([small, large], 5, seed=1), tiny.prompt([large], 3, seed=2)])
    return {name: x.to(dtype) if x.is_floating_point() else x for name, x in batch.items()}


@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_every_family_has_its_own_found_and_says_the_same(name: str) -> None:
    model = TINY[name].build()
    batch = batch_of(TINY[name], torch.float32)
    expected = model(**batch).logits
    rows = attach_rows(model)
    assert rows.unknown == set(FAMILIES[name].left_to_torch)
    # In every block of tower and decoder two norms, and what is between its linears; the final norm; the projector's.
    found = Counter(type(each.module).__name__ for each in rows.replaced)
    classes = {type(module).__name__ for module in model.modules()}
    assert {one for one in classes if "Norm" in one} <= set(found)
    gated = sum(hasattr(module, "gate_proj") for module in model.modules())
    assert sum(count for one, count in found.items() if one.endswith("MLP")) == gated >= 5
    with ops.record() as used:
        logits = model(**batch).logits
    assert not used.lacking and sum(used.calls.values()) >= sum(found.values()) - 2
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))
    rows.detach()
    assert torch.equal(model(**batch).logits, expected)


@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_every_family_in_bfloat16_is_as_close_to_float32(name: str) -> None:
    model = TINY[name].build()
    exact = model(**batch_of(TINY[name], torch.float32)).logits
    model, batch = model.bfloat16(), batch_of(TINY[name], torch.bfloat16)
    before = (model(**batch).logits - exact).norm()
    attach_rows(model)
    assert (model(**batch).logits - exact).norm() < 1.1 * before


@torch.no_grad()
def test_compressed_saved_and_loaded(tmp_path: Path) -> None:
    model: Any = make_model()
    tools = processor()
    names = set(model.state_dict())
    quota.compress(model, tools, make_samples(2), scheme=QuantizationScheme(weight_rounding="rtn"), method="paper")
    assert isinstance(model.quota_rows, RowOperators) and not model.quota_rows.unknown
    assert {name for name in model.state_dict() if "norm" in name} == {name for name in names if "norm" in name}
    quota.save_pretrained(model, tools, tmp_path / "out")
    loaded: Any = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert len(loaded.quota_rows.replaced) == len(model.quota_rows.replaced) > 10


def test_a_model_in_16_bits_keeps_its_own() -> None:
    model = make_model()
    scheme = QuantizationScheme(weight_bits=16, activation_bits=16)
    quota.compress(model, processor(), make_samples(2), scheme=scheme, method="paper")
    assert not hasattr(model, "quota_rows")
