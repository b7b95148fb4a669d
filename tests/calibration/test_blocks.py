from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from support.tiny_llava import make_model, make_samples, processor
from torch import Tensor, nn

from quota.calibration.blocks import capture, input_hessian, quantize_linears, run, shared_inputs
from quota.errors import QuotaError
from quota.models import family
from quota.ops.hadamard import block_hadamard
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


def test_hessian_is_the_second_moment_of_the_rotated_inputs(inputs: Inputs) -> None:
    model = make_model()
    layer = family(model).decoder_layers[0]
    captured = [capture(model, [layer], sample) for sample in inputs]

    def advance(sample: int) -> Tensor:
        hidden, beside = captured[sample]
        return run(layer, hidden, beside[0])

    seen: list[Tensor] = []
    hook = layer.mlp.down_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
    for sample in range(len(inputs)):
        advance(sample)
    hook.remove()
    # 96 channels: the largest block that divides them is 32.
    x = block_hadamard(torch.cat(seen), 32).double()
    hessian = input_hessian(layer.mlp.down_proj, 32, advance, len(inputs))
    torch.testing.assert_close(hessian.double(), x.T @ x, rtol=1e-4, atol=1e-4)


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
