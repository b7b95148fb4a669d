"""What a checkpoint of ours must store, checked tensor by tensor while it is loaded.

transformers fills a tensor that the files lack with fresh random numbers, and casts one of another type; both would be
a model that answers nonsense without a word. And kernels trust what they are given. So before loading, the headers of
the files are compared with the model, name by name; and after it the numbers themselves are looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from quota.attention.keys import KeyTransform
from quota.checkpoint.weights import FLOATS, check_finite, check_header, locate, missing_tensors
from quota.errors import QuotaError
from quota.quantization.linear import W4A4Linear

_ADVICE = "copy the checkpoint again or compress again"
_TYPES = {torch.int32: ("I32",), torch.int64: ("I64",)}


def check_headers(model: PreTrainedModel, files: Sequence[Path]) -> None:
    """Compare what `files` say that they hold with `model`, whose quantised layers are still empty.

    QuotaError, naming the first tensor, for one that is missing, unexpected, stored twice, or of another shape or type.
    """
    places, unexpected = locate(files, model)
    if missing := missing_tensors(model, places):
        raise QuotaError(f"the checkpoint lacks {missing[0]}; {_ADVICE}")
    if unexpected:
        raise QuotaError(f"the checkpoint holds {unexpected[0]}, which the model does not have; {_ADVICE}")
    for name, tensor in model.state_dict().items():
        if name in places:
            check_header(places[name], tensor.shape, _TYPES.get(tensor.dtype, FLOATS))


def check_values(model: PreTrainedModel) -> None:
    """Look at the numbers of a loaded `model`.

    QuotaError, naming the first tensor, for NaN and infinity, scales that are not positive, shapes that are not those
    of their layers, and transforms that cannot be undone.
    """
    for name, tensor in model.state_dict().items():
        # What is offloaded to a disk is read when it is used.
        if not tensor.is_meta:
            check_finite(tensor, f"the checkpoint's {name}")
    for name, module in model.named_modules():
        if isinstance(module, W4A4Linear):
            module.check(name)
        elif isinstance(module, KeyTransform):
            _check_invertible(f"{name}.matrix", module.matrix)


def _check_invertible(name: str, matrix: Tensor) -> None:
    inverse, failed = torch.linalg.inv_ex(matrix.double())
    if bool(failed.any()) or not bool(torch.isfinite(inverse.float()).all()):
        raise QuotaError(f"the checkpoint's {name} cannot be inverted; {_ADVICE}")


def check_config(config: Any) -> None:
    """QuotaError for a configuration of ours that transformers would load as a model that is not quantised."""
    if getattr(config, "quota", None) is None:
        return
    described = getattr(config, "quantization_config", None)
    method = described.get("quant_method") if isinstance(described, dict) else getattr(described, "quant_method", None)
    if str(getattr(method, "value", method)) != "compressed-tensors":
        raise QuotaError(
            'config.json says "quota" but its quantization_config is missing or not of compressed-tensors; '
            "copy it again or compress again"
        )
