"""The state of an unfinished training run, in one safetensors file: weights, optimiser moments, step."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from quota.errors import QuotaError


def save_state(path: Path, parts: nn.Module, optimizers: list[torch.optim.Optimizer], step: int) -> None:
    """Write beside `path`, then rename."""
    tensors = {f"weight.{name}": tensor.detach() for name, tensor in parts.named_parameters()}
    for index, optimizer in enumerate(optimizers):
        for number, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"moment.{index}.{number}.{name}": torch.as_tensor(value) for name, value in moments.items()}
    beside = path.with_name(path.name + ".part")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, beside, {"step": str(step)})
    beside.rename(path)


def load_state(path: Path, parts: nn.Module, optimizers: list[torch.optim.Optimizer]) -> int:
    """Restore a run in place and return the step to go on from; 0 where there is no state.

    Raises:
        QuotaError: the state is of another model.
    """
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        step = int(file.metadata()["step"])
    parameters = dict(parts.named_parameters())
    if {f"weight.{name}" for name in parameters} != {name for name in tensors if name.startswith("weight.")}:
        raise QuotaError(f"{path} is the state of another model: delete it to start anew")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"weight.{name}"])
    for index, optimizer in enumerate(optimizers):
        saved = optimizer.state_dict()
        saved["state"] = _moments(tensors, f"moment.{index}.")
        optimizer.load_state_dict(saved)
    return step


def _moments(tensors: dict[str, Tensor], prefix: str) -> dict[int, dict[str, Tensor]]:
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            number, key = name.removeprefix(prefix).split(".")
            moments.setdefault(int(number), {})[key] = tensor
    return moments
