from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from support.tiny_llava import make_model, make_samples, processor
from torch import Tensor, nn

from quota.calibration.blocks import capture, entering, in_place, quantize_linears, run, shared_inputs
from quota.errors import QuotaError
from quota.models import family
from quota.prompts import build_inputs
from quota.scheme import QuantizationScheme

Inputs = list[Mapping[str, Any]]


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    return [build_inputs(processor(), [sample]) for sample in make_samples(5)]


def test_linears_are_staged_in_calling_order(inputs: Inputs) -> None:
    model = make_model()
    layer = family(model).decoder_layers[0]
    hidden, beside = capture(model, [layer], inputs[0])
    linears = {name: module for name, module in reversed(list(layer.named_modules())) if isinstance(module, nn.Linear)}
    stages = shared_inputs(linears, lambda: run(layer, hidden, beside[0]))
    assert [sorted(name.rpartition(".")[2] for name in stage) for stage in stages] == [
        ["k_proj", "q_proj", "v_proj"],
        ["o_proj"],
        ["gate_proj", "up_proj"],
        ["down_proj"],
    ]


def test_what_enters_a_linear(inputs: Inputs) -> None:
    model = make_model()
    layer = family(model).decoder_layers[0]
    hidden, beside = capture(model, [layer], inputs[0])
    seen: list[Tensor] = []
    hook = layer.mlp.down_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    run(layer, hidden, beside[0])
    hook.remove()
    assert torch.equal(entering(layer.mlp.down_proj, lambda: run(layer, hidden, beside[0])), seen[0])
    assert not layer.mlp.down_proj._forward_pre_hooks


def test_modules_stand_in_their_places_inside_the_block() -> None:
    model = make_model()
    name = next(name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    other, before = nn.Identity(), model.get_submodule(name)
    with pytest.raises(KeyError), in_place(model, {name: other}):
        assert model.get_submodule(name) is other
        raise KeyError
    assert model.get_submodule(name) is before


@torch.no_grad()
@pytest.mark.parametrize("rounding", ["corrected", "gptq"])
def test_a_block_that_is_quantised_stays_close(rounding: Any, inputs: Inputs) -> None:
    """The exact stream sees the original linears, however many have been replaced by then."""
    model = make_model()
    layer = family(model).decoder_layers[0]
    captured = [capture(model, [layer], sample) for sample in inputs]
    meant = [run(layer, hidden, beside[0]) for hidden, beside in captured]
    linears = {name: module for name, module in model.named_modules() if module in set(layer.modules())}
    linears = {name: module for name, module in linears.items() if isinstance(module, nn.Linear)}
    exact: list[Tensor] = []

    def advance(sample: int) -> Tensor:
        hidden, beside = captured[sample]
        return run(layer, hidden, beside[0])

    def run_exact(sample: int) -> Tensor:
        assert all(model.get_submodule(name) is linear for name, linear in linears.items())
        exact.append(advance(sample))
        return exact[-1]

    scheme = QuantizationScheme(weight_rounding=rounding)
    quantize_linears(model, linears, scheme, advance, len(inputs), run_exact=run_exact)
    # Stopped at each linear, so it never comes to the end.
    assert not exact
    errors = [float((advance(sample) - meant[sample]).norm() / meant[sample].norm()) for sample in range(len(inputs))]
    assert max(errors) < 0.2


def test_capture_leaves_the_model_as_it_was(inputs: Inputs) -> None:
    model = make_model()
    before = model(**inputs[0]).logits
    capture(model, list(family(model).decoder_layers), inputs[0])
    assert torch.equal(model(**inputs[0]).logits, before)


def test_a_linear_that_is_never_called_is_refused(inputs: Inputs) -> None:
    model = make_model()
    layer = family(model).decoder_layers[0]
    hidden, beside = capture(model, [layer], inputs[0])
    name, other = "model.language_model.layers.1.mlp.up_proj", family(model).decoder_layers[1].mlp.up_proj
    with pytest.raises(QuotaError, match=f"never reaches {name}"):
        quantize_linears(model, {name: other}, QuantizationScheme(), lambda _: run(layer, hidden, beside[0]), 1)
    assert model.get_submodule(name) is other
