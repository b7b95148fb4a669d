"""The W4A4 linear operator on the CPU: in the making."""

from __future__ import annotations

from quota.ops.interface import LinearSpec


def lacks(spec: LinearSpec) -> str | None:
    """Why these kernels cannot run such a layer."""
    return "its kernels are in the making"
