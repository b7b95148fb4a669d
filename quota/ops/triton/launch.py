"""Launching a kernel: the one place where work is given to the GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# For kernels that equal the reference to the last bit: no sum is fused with a product.
EXACT = {"enable_fp_fusion": False}


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    """Run `kernel` over `grid` on the device of its first tensor; an empty grid is no work."""
    if 0 in grid:
        return
    tensor = next(argument for argument in args if isinstance(argument, Tensor))
    # Kernels go to the current device, which need not be the tensors'.
    with torch.cuda.device_of(tensor):
        kernel[grid](*args, **options)


def tiles(length: int, side: int) -> int:
    """How many tiles of `side` cover `length`."""
    return -(-length // side)


def power_of_two(value: int, least: int = 1) -> int:
    """The smallest power of two that is at least `value` and `least`: tiles have such sides."""
    return max(least, 1 << max(0, value - 1).bit_length())
