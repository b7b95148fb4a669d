"""Lets torchvision be imported beside a torch for CPUs: a pytest plugin (`-p support.operators`), to come first of all.

The torchvision that pip brings is built for CUDA. Beside a torch without it, its compiled operators cannot be loaded,
and its import fails on describing two of them. They are declared here, without a body: no processor calls them.
"""

from __future__ import annotations

import torch

OPERATORS = ("nms", "qnms")
_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

try:
    import torchvision
except RuntimeError:
    # Held for as long as the process lives: operators go with the library that declared them.
    LIBRARY = torch.library.Library("torchvision", "DEF")
    for name in OPERATORS:
        LIBRARY.define(name + _SIGNATURE)
    import torchvision  # noqa: F401
