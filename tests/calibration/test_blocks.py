from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest
import torch
from support.tiny_llava import make_model, make_samples, processor
from torch import Tensor, nn

from quota.calibration.blocks import capture, input_hessian, quantize_linears, run, shared_inputs, some_inputs
from quota.errors import QuotaError
from quota.models import family
from quota.ops.hadamard import block_hadamard
from quota.prompts import build_inputs
from quota.scheme import QuantizationScheme

pytestmark = pytest.mark.usefixtures("few_steps")

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
    hessian = input_hessian(layer.mlp.down_proj, partial(block_hadamard, block=32), advance, len(inputs))
    torch.testing.assert_close(hessian.double(), x.T @ x, rtol=1e-4, atol=1e-4)


def test_some_inputs_are_evenly_spaced_and_of_every_sample(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quota.calibration.blocks.KEPT_TOKENS", 3 * len(inputs))
    layer = family(make_model()).decoder_layers[0]
    hidden = [torch.arange(4.0 * tokens).view(1, -1, 1).expand(1, -1, 96) for tokens in range(1, len(inputs) + 1)]
    some = some_inputs(layer.mlp.down_proj, lambda i: layer.mlp.down_proj(hidden[i]), len(hidden))
    assert some.shape == (3 * len(inputs), 96)
    assert some[:6, 0].tolist() == [0, 1, 2, 0, 2, 5]


@torch.no_grad()
def test_linears_that_read_one_tensor_share_a_trained_transform(inputs: Inputs) -> None:
    model, scheme = make_model(), QuantizationScheme(transforms="trained")
    layer = family(model).decoder_layers[0]
    hidden, beside = capture(model, [layer], inputs[0])
    prefix = "model.language_model.layers.0.mlp."
    linears = {prefix + name: getattr(layer.mlp, name) for name in ("gate_proj", "up_proj", "down_proj")}
    quantize_linears(model, linears, scheme, lambda _: run(layer, hidden, beside[0]), 1)
    gate, up, down = (layer.mlp.get_submodule(name).transform for name in ("gate_proj", "up_proj", "down_proj"))
    assert torch.equal(gate.left, up.left) and gate.left is not up.left
    assert len(down.right) != len(gate.right)


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
