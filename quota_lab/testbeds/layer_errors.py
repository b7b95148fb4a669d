"""How far the layers of a quantised tower stray, by what they are for.

    error = ||yq - y||_2 / ||y||_2        over all tokens of a picture; the mean over blocks and pictures

y is a linear layer's output in the full-precision tower, yq in the quantised one, each with what the blocks before it
made of the picture: errors pile up over depth, as they do in use. Values are left out: a quantiser may rotate them, as
long as the output projection rotates them back.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from quota.calibration.blocks import Beside, capture, quantize_linears, run, run_all
from quota.calibration.curves import relative_error
from quota.progress import Progress
from quota.quantization.folding import fold
from quota.scheme import QuantizationScheme

KINDS = {
    "q_proj": "queries, keys",
    "k_proj": "queries, keys",
    "query": "queries, keys",
    "key": "queries, keys",
    "o_proj": "attention output",
    "dense": "attention output",
    "fc1": "fc1",
    "fc2": "fc2",
}
"""What a linear is for, by the end of its name, which differs between versions of transformers."""


@torch.no_grad()
def layer_errors(
    tower: Any, scheme: QuantizationScheme, calibration: Tensor, pictures: Tensor, progress: Progress | None = None
) -> dict[str, float]:
    """Error by kind of layer after quantising a copy of `tower` block by block.

    `calibration` and `pictures` are pixels [N, 3, S, S]. `tower` itself stays as it is.
    """
    blocks = list(tower.encoder.layer)
    deployed, calibration_besides = _capture(tower, blocks, calibration)
    meant_by = [hidden.clone() for hidden in deployed]
    exact, besides = _capture(tower, blocks, pictures)
    strayed = list(exact)
    errors: dict[str, list[float]] = {}
    for index, block in enumerate(blocks):
        quantized = deepcopy(block)
        around = [chain[index] for chain in calibration_besides]
        advance = partial(_run_sample, quantized, deployed, around)
        run_exact = partial(_run_sample, quantized, meant_by, around)
        linears = {name: module for name, module in quantized.named_modules() if isinstance(module, nn.Linear)}
        if scheme.folds:
            fold(quantized, set(linears.values()), partial(run_all, run_exact, len(deployed)), partial(run_exact, 0))
        quantize_linears(quantized, linears, scheme, advance, len(deployed), run_exact=run_exact)
        meant_by = [_run_sample(block, meant_by, around, sample) for sample in range(len(deployed))]
        deployed = [advance(sample) for sample in range(len(deployed))]
        for sample, chain in enumerate(besides):
            meant = _outputs(block, exact[sample], chain[index])
            seen = _outputs(quantized, strayed[sample], chain[index])
            for name, output in meant.items():
                errors.setdefault(KINDS[name.rpartition(".")[2]], []).append(relative_error(seen[name], output))
            exact[sample] = run(block, exact[sample], chain[index])
            strayed[sample] = run(quantized, strayed[sample], chain[index])
        if progress is not None:
            progress(index + 1, len(blocks))
    return {kind: sum(found) / len(found) for kind, found in errors.items()}


def _capture(tower: Any, blocks: Sequence[nn.Module], pixels: Tensor) -> tuple[list[Tensor], list[list[Beside]]]:
    captured = [capture(tower, blocks, {"pixel_values": picture[None]}) for picture in pixels]
    return [hidden for hidden, _ in captured], [beside for _, beside in captured]


def _run_sample(block: nn.Module, hidden: list[Tensor], beside: list[Beside], sample: int) -> Tensor:
    return run(block, hidden[sample], beside[sample])


def _outputs(block: nn.Module, hidden: Tensor, beside: Beside) -> dict[str, Tensor]:
    """What the layers named in `KINDS` give in one run of the block, by their names in it."""
    found: dict[str, Tensor] = {}

    def record(name: str, _module: nn.Module, _args: Any, output: Tensor) -> None:
        found[name] = output

    with ExitStack() as hooks:
        for name, module in block.named_modules():
            if name.rpartition(".")[2] in KINDS:
                hooks.callback(module.register_forward_hook(partial(record, name)).remove)
        run(block, hidden, beside)
    return found
