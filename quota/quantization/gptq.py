"""GPTQ: round weights so that the layer's outputs stay close, not the weights (arXiv 2210.17323).

For y = W x and the second moment H = E[x x^T] of the layer's inputs, the columns of W are rounded in order,
and the error of each is made up for by the columns still to come:

    U   = upper Cholesky factor of (H + damping * mean(diag H) * I)^-1
    e_j = (w_j - Q(w_j)) / U_jj                 error of column j
    w_k = w_k - e_j U_jk        for k > j       correction of the later columns

Groups of columns are taken in descending order of their inputs' energy, as errors in the last ones can no longer be
made up for; within a group the order is kept, and so is the order in which results are stored. The scale of a row
is fixed before, from the weights as they are; the step of a group is chosen when its first column is reached, from
the weights as corrected so far, by the search of `quota.ops.weights`. Both weigh every column by 1 / U_jj^2: what
H_jj becomes once the later columns have done what they can.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quota.errors import QuotaError
from quota.ops.weights import round_weight, row_scale, search_step

DAMPING = 0.01
_COLUMNS = 64
"""At most so many are rounded one by one before the others are corrected, where a row has no groups."""


def gptq(
    weight: Tensor, hessian: Tensor, bits: int, group: int, damping: float = DAMPING
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise `weight` [N, K] given `hessian` [K, K] (any multiple of H); `group` divides K.

    Returns q int8 [N, K], step uint8 [N, K / group] and scale float32 [N] in the form of `quantize_weight`. Corrections
    within a group are made column by column, those of later groups once a group is done, as one matrix product.
    Raises QuotaError if the Hessian is not finite.
    """
    order, factor, importance = _prepare(hessian, bits, group, damping)
    remaining = weight[:, order.flatten()].double()
    scale = _row_scale(remaining, order, importance, bits)
    q = torch.empty_like(weight, dtype=torch.int8)
    steps = torch.ones(len(weight), weight.shape[1] // group, dtype=torch.uint8, device=weight.device)
    width = order.shape[1]
    for index, members in enumerate(order):
        first, last = index * width, (index + 1) * width
        current, local = remaining[:, first:last], factor[first:last, first:last]
        size = scale
        if bits == 4:
            step = search_step(current, scale, importance[first:last])
            steps[:, members[0] // group] = step.to(torch.uint8)
            size = scale * step
        errors = torch.empty_like(current)
        for j in range(width):
            rounded = round_weight(current[:, j], size, bits)
            q[:, members[j]] = rounded.to(torch.int8)
            errors[:, j] = (current[:, j] - rounded * size) / local[j, j]
            current[:, j + 1 :] -= errors[:, j, None] * local[j, j + 1 :]
        remaining[:, last:] -= errors @ factor[first:last, last:]
    return q, steps, scale.float()


def gptq_naive(
    weight: Tensor, hessian: Tensor, bits: int, group: int, damping: float = DAMPING
) -> tuple[Tensor, Tensor, Tensor]:
    """The same, one column at a time, each error spread over all later columns at once."""
    order, factor, importance = _prepare(hessian, bits, group, damping)
    remaining = weight[:, order.flatten()].double()
    scale = _row_scale(remaining, order, importance, bits)
    q = torch.empty_like(weight, dtype=torch.int8)
    steps = torch.ones(len(weight), weight.shape[1] // group, dtype=torch.float64)
    for j, column in enumerate(order.flatten().tolist()):
        step = steps[:, column // group]
        if bits == 4 and j % group == 0:
            step.copy_(search_step(remaining[:, j : j + group], scale, importance[j : j + group]))
        rounded = round_weight(remaining[:, j], scale * step, bits)
        q[:, column] = rounded.to(torch.int8)
        error = (remaining[:, j] - rounded * scale * step) / factor[j, j]
        remaining[:, j + 1 :] -= torch.outer(error, factor[j, j + 1 :])
    return q, steps.to(torch.uint8), scale.float()


def _prepare(hessian: Tensor, bits: int, group: int, damping: float) -> tuple[Tensor, Tensor, Tensor]:
    """Columns as they are taken [groups, width], U [K, K] and 1 / U_jj^2 [K], both in that order."""
    # With 8 bits a row has no groups; columns are then taken so many at a time.
    order = _descending_energy(hessian, group if bits == 4 else min(_COLUMNS, len(hessian) & -len(hessian)))
    columns = order.flatten()
    factor = _inverse_factor(hessian[columns][:, columns], damping)
    return order, factor, factor.diagonal().square().reciprocal()


def _row_scale(weight: Tensor, order: Tensor, importance: Tensor, bits: int) -> Tensor:
    """s [N] of weights [N, K] in the order of `order` [groups, width]."""
    return row_scale(weight.unflatten(1, order.shape), bits, importance.view(order.shape))


def _descending_energy(hessian: Tensor, group: int) -> Tensor:
    """Columns of each group [K / group, group], the group with the strongest inputs first."""
    columns = torch.arange(hessian.shape[0], device=hessian.device).unflatten(0, (-1, group))
    energy = hessian.diagonal()[columns].sum(-1)
    return columns[energy.argsort(descending=True, stable=True)]


def _inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """Upper Cholesky factor U of the inverse of the damped Hessian, (H + d I)^-1 = U^T U, float64 [K, K]."""
    if not torch.isfinite(hessian).all():
        raise QuotaError("the calibration activations hold NaN or infinity; calibrate in float32")
    # Upside down, where H' = L L^T; then U is L^-1, turned again, and H need not be inverted first.
    damped = hessian.flip(0, 1).double()
    del hessian
    diagonal = damped.diagonal()
    mean = diagonal.mean()
    # Inputs that are all zero say nothing about the weights: round them to nearest.
    diagonal += damping * mean if mean > 0 else 1.0
    torch.linalg.cholesky(damped, out=damped)
    # These matrices are the largest of a calibration. Column by column, as LAPACK wants it, the result takes the
    # place of the identity.
    inverse = torch.eye(len(damped), dtype=damped.dtype, device=damped.device).mT
    torch.linalg.solve_triangular(damped, inverse, upper=False, out=inverse)
    del damped
    return inverse.flip(0, 1)
