"""What the kernels are made for; apart from them, as it is asked for where triton is not installed."""

from __future__ import annotations

LARGEST_ROTATION = 64
"""A program holds the matrix in registers, which more would overflow."""
WIDEST_HEAD = 256
