"""What GPTQ is told about a linear's inputs, and how its weights are corrected before they are rounded.

    x    what enters the linear in full precision            rotated as the operator rotates it
    v    what the deployed operator multiplies: Q(xq)         the input that has strayed, quantised
    H    = sum v^T v                                          what GPTQ rounds by
    D    = sum (x - v)^T v                                    what v lacks, as far as v itself tells

A deployed layer reads v where the model meant x. Of all weights those that come closest to W x from v are W E[x v^T]
E[v v^T]^-1, and that is where they are moved, before GPTQ rounds them:

    W* = W + a W D (H + d I)^-1         a = 1 - 8 K / tokens, at most 0.6 and at least 0;  d = 0.2 mean(diag H)

K input channels are fitted to so many tokens. With few of them the fit is to those tokens alone, and a, the share of it
that is taken, ends at 0: that is GPTQ. To aim at the full-precision outputs is the idea of GPTAQ (arXiv 2504.02692) and
QEP (arXiv 2504.09629). With `weight_rounding` "gptq" H is that of xq, as published, and nothing is corrected.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from quota.ops.activations import dequantize_activation, quantize_activation
from quota.ops.hadamard import block_hadamard
from quota.ranks import Ranks
from quota.scheme import QuantizationScheme

RIDGE = 0.2
TOKENS = 8
"""For each channel, below which the fit is worth nothing."""
MOST = 0.6
"""Of the fit. All of it is worse on tokens that nothing was fitted to (SmolLM2, the first layers)."""
_ROWS = 256
"""Of a product at a time: it stays in the processor's cache on its way into the sum."""
FEW = f"linears with fewer than {TOKENS} calibration tokens a channel are rounded without correction; give more samples"


class Moments:
    """Sums over all calibration tokens of one linear with K inputs, or of several that read the same."""

    def __init__(self, columns: int, scheme: QuantizationScheme, device: torch.device) -> None:
        self.corrects = scheme.weight_rounding == "corrected"
        self._columns, self._scheme = columns, scheme
        # In float64: the order of samples then changes no bit of the float32 that is left of the sum.
        # Of H, which is symmetric, only blocks on the diagonal and right of it.
        self._hessian = torch.zeros(columns, columns, dtype=torch.float64, device=device)
        self._lacking = torch.zeros_like(self._hessian) if self.corrects else None
        self._tokens = 0

    def add(self, seen: Tensor, meant: Tensor | None = None) -> None:
        """One sample: inputs [..., K] of the deployed stream and, where weights are corrected, of the exact one."""
        seen = self._rotated(seen)
        if self._lacking is not None:
            assert meant is not None
            seen = self._multiplied(seen)
            lacking = self._rotated(meant) - seen
            for rows in self._blocks():
                self._lacking[rows].add_(lacking[:, rows].T @ seen)
        for rows in self._blocks():
            right = slice(rows.start, None)
            self._hessian[rows, right].add_(seen[:, rows].T @ seen[:, right])
        self._tokens += len(seen)

    def of_all(self, ranks: Ranks) -> tuple[Tensor, Tensor | None]:
        """H [K, K], and C [K, K] so that W* = W + W C; None if there is none, or too few tokens for one. float32."""
        hessian = ranks.total(self._hessian)
        for rows in self._blocks():
            hessian[rows.stop :, rows] = hessian[rows, rows.stop :].T
        if self._lacking is None:
            return hessian.float(), None
        lacking = ranks.total(self._lacking)
        tokens = float(ranks.total(torch.tensor(float(self._tokens), dtype=torch.float64)))
        trust = min(MOST, 1 - TOKENS * self._columns / tokens)
        if trust <= 0 and ranks.rank == 0:
            warnings.warn(FEW, stacklevel=2)
        if trust <= 0 or not bool(torch.isfinite(hessian).all()):
            # What is not finite GPTQ refuses.
            return hessian.float(), None
        return hessian.float(), (trust * _fitted(hessian, lacking)).float()

    def _blocks(self) -> list[slice]:
        return [slice(start, min(start + _ROWS, self._columns)) for start in range(0, self._columns, _ROWS)]

    def _rotated(self, x: Tensor) -> Tensor:
        return block_hadamard(x.float().reshape(-1, self._columns), self._scheme.hadamard_for(self._columns))

    def _multiplied(self, x: Tensor) -> Tensor:
        bits = self._scheme.activation_bits
        if bits == 16:
            return x
        return dequantize_activation(*quantize_activation(x, bits, self._scheme.activation_group_for(self._columns)))


def _fitted(hessian: Tensor, lacking: Tensor) -> Tensor:
    """D (H + d I)^-1."""
    mean = hessian.diagonal().mean()
    damped = hessian + torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device) * (
        RIDGE * mean if mean > 0 else 1.0
    )
    return torch.cholesky_solve(lacking.T, torch.linalg.cholesky(damped)).T
