"""GPTQ: round weights so that the layer's outputs stay close, not the weights (arXiv 2210.17323).

For y = W x and the second moment H = E[x x^T] of the layer's inputs, the columns of W are rounded in order,
and the error of each is made up for by the columns still to come:

    U   = upper Cholesky factor of (H + damping * mean(diag H) * I)^-1
    e_j = (w_j - Q(w_j)) / U_jj                 error of column j
    w_k = w_k - e_j U_jk        for k > j       correction of the later columns

Groups of columns are taken in descending order of their inputs' energy, as errors in the last ones can no longer
be made up for; within a group the order is kept, and so is the order in which results are stored. The scale of a
group is chosen when its first column is reached, from the weights as corrected so far, by the clip search of
`quota.ops.integer` with every column weighed by 1 / U_jj^2: what H_jj becomes once the later columns have
done what they can.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quota.errors import QuotaError
from quota.ops.integer import round_weight, search_scale

DAMPING = 0.01


def gptq(weight: Tensor, hessian: Tensor, bits: int, group: int, damping: float = DAMPING) -> tuple[Tensor, Tensor]:
    """Quantise `weight` [N, K] given `hessian` [K, K] (any multiple of H); `group` divides K.

    Returns q int8 [N, K] and scale float32 [N, K / group] in the form of `quantize_weight`. Corrections within
    a group are made column by column, those of later groups once a group is done, as one matrix product.
    Raises QuotaError if the Hessian is not finite.
    """
    order = _descending_energy(hessian, group)
    columns = order.flatten()
    factor = _inverse_factor(hessian[columns][:, columns], damping)
    remaining = weight[:, columns].double()
    q = torch.empty_like(weight, dtype=torch.int8)
    scales = weight.new_empty(weight.shape[0], len(order), dtype=torch.float32)
    for index, members in enumerate(order):
        first, last = index * group, (index + 1) * group
        current, local = remaining[:, first:last], factor[first:last, first:last]
        scale = search_scale(current, bits, local.diagonal().square().reciprocal())
        errors = torch.empty_like(current)
        for j in range(group):
            rounded = round_weight(current[:, j], scale, bits)
            q[:, members[j]] = rounded.to(torch.int8)
            errors[:, j] = (current[:, j] - rounded * scale) / local[j, j]
            current[:, j + 1 :] -= errors[:, j, None] * local[j, j + 1 :]
        remaining[:, last:] -= errors @ factor[first:last, last:]
        scales[:, members[0] // group] = scale.float()
    return q, scales


def gptq_naive(
    weight: Tensor, hessian: Tensor, bits: int, group: int, damping: float = DAMPING
) -> tuple[Tensor, Tensor]:
    """The same, one column at a time, each error spread over all later columns at once."""
    columns = _descending_energy(hessian, group).flatten()
    factor = _inverse_factor(hessian[columns][:, columns], damping)
    importance = factor.diagonal().square().reciprocal()
    remaining = weight[:, columns].double()
    q = torch.empty_like(weight, dtype=torch.int8)
    scales = weight.new_empty(weight.shape[0], weight.shape[1] // group, dtype=torch.float64)
    for j, column in enumerate(columns.tolist()):
        scale = scales[:, column // group]
        if j % group == 0:
            scale.copy_(search_scale(remaining[:, j : j + group], bits, importance[j : j + group]))
        rounded = round_weight(remaining[:, j], scale, bits)
        q[:, column] = rounded.to(torch.int8)
        error = (remaining[:, j] - rounded * scale) / factor[j, j]
        remaining[:, j + 1 :] -= torch.outer(error, factor[j, j + 1 :])
    return q, scales.float()


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
