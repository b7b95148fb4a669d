"""The linear map that quantisation likes best on a product of two things, in closed form.

A product x W^T does not change when x becomes x M and W becomes W M^-T, nor do the scores q k^T of attention when keys
become k M and queries q M^-T. But what is quantised, behind the map, gets noise in proportion to its energy (a Hadamard
rotation behind M spreads the energy evenly), and the noise of one factor is multiplied by the other. With the second
moments A = sum x^T x and B = sum w^T w of both sides the damage is therefore, whichever of the two is quantised,

    tr(M^T A M) * tr(M^-1 B M^-T)

and least where both sides have the same second moment. That M is the square root of the geometric mean of A^-1 and B,

    M^2 = A^-1 # B = A^-1/2 (A^1/2 B A^1/2)^1/2 A^-1/2

and if M may only be a diagonal, M_ii = (B_ii / A_ii)^(1/4), the "smoothing" of SmoothQuant (arXiv 2211.10438) at half
strength, in terms of energies. FlatQuant (arXiv 2410.09426) trains its transforms; here
nothing has to be trained.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quota.errors import QuotaError

MATRIX_DAMPING = 0.3
"""Share of the mean energy that is added to every direction. In towers most directions of the values carry next to
nothing, and M would blow them up a hundredfold; noise is no longer spread evenly then."""
DIAGONAL_DAMPING = 1e-3
"""The same for a channel. A diagonal mixes nothing, and where a few channels are huge, the mean is theirs."""


def balance(first: Tensor, second: Tensor, damping: float = MATRIX_DAMPING) -> Tensor:
    """M float32 [..., n, n], symmetric, from the second moments A and B [..., n, n] of the two sides.

    All-zero moments count as the identity.
    """
    a, b = _damped(first, damping), _damped(second, damping)
    root, inverse = _power(a, 0.5), _power(a, -0.5)
    mean = inverse @ _power(root @ b @ root, 0.5) @ inverse
    return _power(mean, 0.5).float()


def balance_diagonal(first: Tensor, second: Tensor, damping: float = DIAGONAL_DAMPING) -> Tensor:
    """The diagonal [..., n] of the best diagonal M, from the energies A_ii and B_ii [..., n] of the two sides."""
    a, b = (_damped_energy(energy.double(), damping) for energy in (first, second))
    return (b / a).pow(0.25).float()


def _damped(moment: Tensor, damping: float) -> Tensor:
    moment = moment.double()
    diagonal = moment.diagonal(dim1=-2, dim2=-1)
    return moment + torch.diag_embed(_damped_energy(diagonal, damping) - diagonal)


def _damped_energy(energy: Tensor, damping: float) -> Tensor:
    mean = energy.mean(dim=-1, keepdim=True)
    return torch.where(mean > 0, energy + damping * mean, torch.ones_like(energy))


def _power(moment: Tensor, exponent: float) -> Tensor:
    """A power of a symmetric, positive definite matrix. QuotaError for numbers that are none, or too far apart."""
    try:
        values, vectors = torch.linalg.eigh((moment + moment.transpose(-1, -2)) / 2)
    except torch.linalg.LinAlgError:  # pyright: ignore[reportPrivateImportUsage]
        raise QuotaError(
            "a layer's weights or activations are NaN, infinite or too far apart to be balanced; check the model's "
            'checkpoint, or use transforms="hadamard"'
        ) from None
    floor = values[..., -1:] * torch.finfo(values.dtype).eps
    return (vectors * values.clamp(min=floor).pow(exponent).unsqueeze(-2)) @ vectors.transpose(-1, -2)
