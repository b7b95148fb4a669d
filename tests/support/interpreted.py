"""Triton's kernels: on the GPU where there is one, else by triton's interpreter, as plain Python on the CPU.

Triton decides at its import whether kernels are interpreted, and one process can do only one of the two; the tests that
compile kernels, and those of other backends, want the other. So the interpreter has a process of its own.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from multiprocessing import get_context
from typing import Any

import torch


@contextmanager
def interpreter() -> Iterator[Callable[..., Any]]:
    """A function that calls its first argument with the others, over there."""
    if torch.cuda.is_available():
        # Else what a kernel complains of is known by the next call only.
        os.environ["CUDA_LAUNCH_BLOCKING"] = "1"
        yield lambda job, *arguments: _moved(job(*_moved(arguments, "cuda")), "cpu")
        return
    with ProcessPoolExecutor(1, get_context("spawn"), _prepare) as pool:
        yield lambda job, *arguments: pool.submit(job, *arguments).result()


def _prepare() -> None:
    os.environ["TRITON_INTERPRET"] = "1"


def _moved(value: Any, device: str) -> Any:
    """`value` with every tensor in it on `device`."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, torch.nn.Module):
        return copy.deepcopy(value).to(device)
    if isinstance(value, (list, tuple)):
        moved = [_moved(one, device) for one in value]
        return type(value)(*moved) if hasattr(value, "_fields") else type(value)(moved)
    if isinstance(value, dict):
        return {key: _moved(one, device) for key, one in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _moved(getattr(value, field.name), device) for field in fields(value)})
    return value
