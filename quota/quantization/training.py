"""Train the transform in front of linears that read one tensor, with the deployed operator in the loss.

    loss = sum_t || y_t - x_t W^T ||^2 / sum_t || x_t W^T ||^2        y = the operator on X'' and Q_w(W')

over tokens t of the calibration set as the deployed model sees them, W the weights of all those linears
(quota/quantization/kronecker.py has the other letters). The operator rounds, so its gradient is taken as
that of the quantisers with round(v) replaced by v (quota/quantization/straight_through.py). L and R start from the
closed form of quota/quantization/balance.py, for the moments of X and W over columns and over rows, and R has the
matrix of Hadamard behind it. Adam descends; its step falls to zero. A step sees some of the tokens and some rows of W,
as the loss is a sum over both: what it costs does not grow with the number of outputs.

Weights are clipped too, each row and group at a ratio of its own, the best of 32. That search is exact, so there is
nothing to descend to; it is repeated whenever other rows are drawn, and by GPTQ for the transform that was found.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from quota.ops.integer import search_scale
from quota.quantization.balance import balance
from quota.quantization.kronecker import Kronecker, clip_groups, turn
from quota.quantization.straight_through import deployed_linear
from quota.scheme import QuantizationScheme

KEPT_TOKENS = 4096
"""Of all samples together: what is trained on."""
TOKENS = 256
"""Of a step."""
ROWS = 512
"""Of a step, as long as it sees them: `ROUND` steps."""
STEPS = 128
ROUND = 16
STEP_SIZE = 1e-2
_TINY = 1e-12
_OPEN = 4.0
"""Where the logit of c starts: c = 0.98. Its step is ten times that of the matrices."""


def train(x: Tensor, weights: Sequence[Tensor], scheme: QuantizationScheme, seed: int = 0) -> Kronecker:
    """The transform for linears with `weights` [N, K] each, from some of what they read, x [T, K].

    The same arguments give the same transform.
    """
    weight, x = torch.cat([part.detach().float() for part in weights]), x.detach().float()
    features = x.shape[1]
    found = Kronecker(features, scheme, device=x.device)
    _balance(found, x, weight)
    with torch.inference_mode(False), torch.enable_grad():
        _descend(found, x.clone(), weight.clone(), scheme, seed)
    for buffer in (found.left, found.right, found.clip):
        # Exact in bfloat16, so that a checkpoint in half the width holds the same transform.
        buffer.copy_(buffer.bfloat16())
    return found


def training_work(features: int, outputs: int) -> int:
    """Multiplications of training in front of one linear, backward passes included; those of turning are left out."""
    return 4 * STEPS * TOKENS * min(ROWS, outputs) * features


def _balance(transform: Kronecker, x: Tensor, weight: Tensor) -> None:
    """Put the closed form in `transform`."""
    shape = len(transform.left), len(transform.right)
    sides = x.unflatten(1, shape), weight.unflatten(1, shape)
    over_columns, over_rows = (
        [torch.einsum(equation, side, side) for side in sides] for equation in ("tij,tkj->ik", "tij,tik->jk")
    )
    left, right = balance(over_columns[0], over_columns[1]), balance(over_rows[0], over_rows[1])
    # Their size is free, as W' makes up for it.
    transform.left.copy_(left / left.norm() * len(left) ** 0.5)
    transform.right.copy_(right / right.norm() * len(right) ** 0.5 @ transform.right)


def _descend(transform: Kronecker, x: Tensor, weight: Tensor, scheme: QuantizationScheme, seed: int) -> None:
    left, right = (nn.Parameter(factor.clone()) for factor in (transform.left, transform.right))
    logit = nn.Parameter(torch.full_like(transform.clip, _OPEN))
    sizes = [{"params": [left, right], "lr": STEP_SIZE}, {"params": [logit], "lr": 10 * STEP_SIZE}]
    optimizer = torch.optim.Adam(sizes)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    generator = torch.Generator().manual_seed(seed)
    group = scheme.weight_group_for(x.shape[1])
    rows, ratio = weight, None
    for step in range(STEPS):
        tokens = _drawn(len(x), TOKENS, generator)
        if step % ROUND == 0:
            rows, ratio = weight[_drawn(len(weight), ROWS, generator)], None
        turned = turn(rows, torch.linalg.inv(left).T, torch.linalg.inv(right).T).unflatten(1, (-1, group))
        largest = turned.abs().amax(-1).clamp(min=_TINY)
        if ratio is None:
            ratio = search_scale(turned.detach(), scheme.weight_bits) / largest.detach()
        entering = clip_groups(turn(x[tokens], left, right), logit.sigmoid(), transform.group)
        y = deployed_linear(entering, turned, largest * ratio, scheme)
        meant = x[tokens] @ rows.T
        loss = (y - meant).square().sum() / meant.square().sum().clamp(min=_TINY)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    transform.left.copy_(left.detach())
    transform.right.copy_(right.detach())
    transform.clip.copy_(logit.detach().sigmoid())


def _drawn(total: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(total, generator=generator)[:count]
