"""How far the decoder's hidden states stray in a quantised model, for visual and for text tokens apart.

    error = mean over tokens of ||xq - x||_2 / ||x||_2        those of one kind; the mean over layers and prompts

x is what leaves a decoder layer in the full-precision model, xq the same under the deployed operators. The two kinds
have different ranges, and there are many more of the one: an average over all tokens would not show who pays. Each
token has its own norm, as that of the first is far larger than all others (quota/calibration/curves.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from quota.calibration.curves import token_error
from quota.models import family


@torch.no_grad()
def token_errors(exact: Any, quantized: Any, inputs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """{"visual": error, "text": error} over `inputs`, the arguments of both models for one prompt each."""
    errors: dict[str, list[float]] = {"visual": [], "text": []}
    for prompt in inputs:
        visual = family(exact).visual_mask(prompt["input_ids"])
        kinds = {"visual": visual, "text": ~visual}
        with _layers(exact) as meant, _layers(quantized) as seen:
            exact(**prompt, use_cache=False)
            quantized(**prompt, use_cache=False)
        for x, xq in zip(meant, seen, strict=True):
            for kind, tokens in kinds.items():
                errors[kind].append(token_error(xq[tokens], x[tokens]))
    return {kind: sum(found) / len(found) for kind, found in errors.items()}


@contextmanager
def _layers(model: Any) -> Iterator[list[Tensor]]:
    """What every decoder layer gives in the forward passes made inside the block."""
    found: list[Tensor] = []

    def record(_module: Any, _args: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    with ExitStack() as hooks:
        for layer in family(model).decoder_layers:
            hooks.callback(layer.register_forward_hook(record).remove)
        yield found
