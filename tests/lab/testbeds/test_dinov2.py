"""The tower's weights from an exported graph, and the errors of its layers, on a tiny random one."""

from __future__ import annotations

from contextlib import ExitStack
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model

from quota.calibration.curves import relative_error
from quota.cli import main
from quota.quantization.linear import W4A4Linear
from quota.scheme import QuantizationScheme
from quota_lab.testbeds.dinov2 import Outcome, state_dict
from quota_lab.testbeds.layer_errors import layer_errors
from quota_lab.testbeds.methods import METHODS, method_scheme
from quota_lab.testbeds.tables import errors_markdown

CONFIG = Dinov2Config(
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    mlp_ratio=2,
    image_size=16,
    patch_size=8,
    use_mask_token=False,
)
RTN = QuantizationScheme(weight_rounding="rtn", transforms="hadamard")


class Node(NamedTuple):
    """What is read of a node of an ONNX graph."""

    op_type: str
    input: list[str]
    output: list[str]


@pytest.fixture
def tower() -> Dinov2Model:
    torch.manual_seed(0)
    return Dinov2Model(CONFIG).eval()


@pytest.fixture
def pixels() -> Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def export(state: dict[str, Tensor]) -> tuple[list[Node], dict[str, Tensor]]:
    """As the exporter leaves a tower: linears transposed and without their names, positions cut in two."""
    nodes, tensors = [], {}
    for name, tensor in state.items():
        if name.endswith("position_embeddings"):
            tensors |= {"onnx::Reshape_1": tensor[:, 1:], "onnx::Concat_1": tensor[:, :1]}
        elif name.endswith(".weight") and tensor.ndim == 2:
            bias, number = f"backbone.{name.removesuffix('weight')}bias", len(tensors)
            tensors[f"onnx::MatMul_{number}"] = tensor.T
            nodes.append(Node("MatMul", ["x", f"onnx::MatMul_{number}"], [f"y{number}"]))
            nodes.append(Node("Add", [bias, f"y{number}"], [f"z{number}"]))
        else:
            tensors[f"backbone.{name}"] = tensor
    return nodes, tensors | {"decoder.bias": torch.zeros(1)}


def outputs(tower: Dinov2Model, picture: Tensor) -> dict[str, Tensor]:
    """What every linear of the blocks gives for a picture."""
    found: dict[str, Tensor] = {}
    with ExitStack() as hooks, torch.no_grad():
        for name, module in tower.encoder.named_modules():
            if isinstance(module, nn.Linear | W4A4Linear):
                record = lambda module, args, output, name=name: found.update({name: output})  # noqa: E731
                hooks.callback(module.register_forward_hook(record).remove)
        tower(picture[None])
    return found


def test_an_exported_tower_is_found_again(tower: Dinov2Model, pixels: Tensor) -> None:
    state = state_dict(*export(tower.state_dict()))
    again = Dinov2Model.from_pretrained(None, config=CONFIG, state_dict=state).eval()
    with torch.no_grad():
        assert torch.equal(again(pixels).last_hidden_state, tower(pixels).last_hidden_state)


def test_errors_are_those_of_the_definition(tower: Dinov2Model, pixels: Tensor) -> None:
    before = {name: tensor.clone() for name, tensor in tower.state_dict().items()}
    errors = layer_errors(tower, RTN, pixels[:1], pixels[1:])
    assert all(torch.equal(tensor, before[name]) for name, tensor in tower.state_dict().items())
    quantized = deepcopy(tower)
    for name, module in tower.encoder.named_modules():
        if isinstance(module, nn.Linear):
            quantized.encoder.set_submodule(name, W4A4Linear.from_linear(module, RTN))
    found: dict[str, list[float]] = {}
    for picture in pixels[1:]:
        meant, seen = outputs(tower, picture), outputs(quantized, picture)
        for name in meant:
            kind = {"q_proj": "queries, keys", "k_proj": "queries, keys", "o_proj": "attention output"}
            last = name.rpartition(".")[2]
            found.setdefault(kind.get(last, last), []).append(relative_error(seen[name], meant[name]))
    del found["v_proj"]
    assert errors == pytest.approx({kind: sum(each) / len(each) for kind, each in found.items()}, rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_more_bits_err_less(method: str, tower: Dinov2Model, pixels: Tensor) -> None:
    four = layer_errors(tower, method_scheme(method), pixels[:1], pixels[1:])
    eight = layer_errors(tower, method_scheme(method, weight_bits=8, activation_bits=8), pixels[:1], pixels[1:])
    assert all(0 < eight[kind] < four[kind] / 4 for kind in four)


def test_the_table_is_markdown() -> None:
    table = errors_markdown(Outcome({"rtn": {"fc1": [0.1, 0.1], "fc2": [0.2, 0.2]}}, crops=4, seeds=2))
    assert "| relative error | fc1 | fc2 |" in table
    assert "| rtn | 0.100 (0.100-0.100) | 0.200 (0.200-0.200) |" in table


def test_a_folder_without_pictures_is_one_line(tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["testbed", "dinov2", "--pictures", str(tmp_path)])
    assert raised.value.code == 1
    said = capsys.readouterr().err.strip()
    assert "holds 0 pictures" in said and "\n" not in said
