"""Triton's interpreter: kernels as plain Python on the CPU, in a process of its own.

Triton decides at its import whether kernels are interpreted, and one process can do only one of the two; the tests that
compile kernels, and those of other backends, want the other.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any


@contextmanager
def interpreter() -> Iterator[Callable[..., Any]]:
    """A function that calls its first argument with the others, over there."""
    with ProcessPoolExecutor(1, get_context("spawn"), _prepare) as pool:
        yield lambda job, *arguments: pool.submit(job, *arguments).result()


def _prepare() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
