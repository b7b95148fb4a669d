"""What calibrating a model computes, so that a progress bar can say honestly how long is left.

Steps differ: a decoder layer is not a tower block, and measuring drops takes longer than the sweep before it. Each
therefore counts for its multiplications,

    block    P T F + sum over its linears of N K^2        F passes over its P weights, and the corrections of GPTQ
    drop     P T / L (1 + r (L - 1 - l))                  r of the tokens go on after layer l of the L of a decoder

at T tokens of all samples. How fast the machine multiplies is seen from the steps behind.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

PASSES = 4
"""Of one sample through a block: full precision, two halves or more for the Hessians, and the deployed operators."""
CORRECTED_PASSES = 6
"""The same where weights are corrected: the halves once more, in full precision."""
RESTORED_PASSES = 2
"""The same of a block that an interrupted run has finished: nothing is rounded."""


def forward_work(modules: Iterable[nn.Module], tokens: int) -> int:
    """Multiplications of one pass of `tokens` tokens through all linears in `modules`."""
    return tokens * sum(linear.weight.numel() for linear in _linears(modules))


def block_work(block: nn.Module, tokens: int, finished: bool, corrected: bool = False) -> int:
    """Multiplications of quantising `block` from `tokens` tokens; of running it alone, if it is `finished` already."""
    if finished:
        return RESTORED_PASSES * forward_work([block], tokens)
    linears = _linears([block])
    corrections = sum(linear.out_features * linear.in_features**2 for linear in linears)
    passes = CORRECTED_PASSES if corrected else PASSES
    return passes * forward_work([block], tokens) + corrections


def _linears(modules: Iterable[nn.Module]) -> list[nn.Linear]:
    return [inside for module in modules for inside in module.modules() if isinstance(inside, nn.Linear)]
