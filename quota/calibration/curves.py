"""What a calibration measures: one number a decoder layer, under the deployed operators.

    (1) S_l  = median over samples of ||xq_l - x_l||_2 / (||x_l||_2 + eta)     `relative_error`, `sensitivity`
    error    = mean over tokens of the same fraction for each token alone      `token_error`
    concentration of attention on few visual tokens                            `attention_concentration`
    redundancy of visual tokens                                                `median_cosine`

x_l enters decoder layer l in full precision, xq_l under the deployed operators (arXiv 2604.17320). Equation (1) is the
published form, which method="paper" reads. In large decoders the norm of the first token is a hundred times that of the
others, and a norm over all of them is that of the first: what else wants to know how far tokens stray takes a norm for
each (`token_error`).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from quota.attention.observation import Observation
from quota.errors import QuotaError

Numbers = Sequence[float] | Tensor

TOP_TOKENS = 10
"""Visual tokens whose attention counts as concentrated."""


@dataclass(frozen=True)
class Curves:
    """One number a decoder layer, measured under the deployed operators."""

    sensitivity: list[float] = field(default_factory=list)
    concentration: list[float] = field(default_factory=list)
    concentration_iqr: list[float] = field(default_factory=list)
    redundancy: list[float] = field(default_factory=list)


def relative_error(xq: Tensor, x: Tensor, eta: float = 1e-6) -> float:
    """Relative error of one sample's layer input, the fraction inside equation (1).

    `x` is full precision, `xq` the same under the deployed operators: equal shapes, no padding; the norms run
    over all elements. Raises QuotaError if the shapes differ.
    """
    if xq.shape != x.shape:
        raise QuotaError(f"relative_error needs equal shapes, got {tuple(xq.shape)} and {tuple(x.shape)}")
    error = torch.linalg.vector_norm(xq.double() - x.double())
    return float(error / (torch.linalg.vector_norm(x.double()) + eta))


def token_error(xq: Tensor, x: Tensor, eta: float = 1e-6) -> float:
    """Mean over tokens of ||xq_t - x_t||_2 / (||x_t||_2 + eta), of two tensors [..., D] with at least one token.

    Raises QuotaError if the shapes differ.
    """
    if xq.shape != x.shape:
        raise QuotaError(f"token_error needs equal shapes, got {tuple(xq.shape)} and {tuple(x.shape)}")
    errors = torch.linalg.vector_norm(xq.double() - x.double(), dim=-1)
    return float((errors / (torch.linalg.vector_norm(x.double(), dim=-1) + eta)).mean())


def sensitivity(errors: Numbers) -> float:
    """Equation (1): S_l, the median of one layer's relative errors over the samples (at least one)."""
    return statistics.median(finite_numbers(errors, "relative errors"))


def attention_concentration(observation: Observation, visual: Tensor) -> float:
    """Share of a text token's attention, averaged over heads and text tokens, that the top ten visual tokens get.

    `observation` is of one sample, `visual` [1, T] its mask of visual tokens.
    """
    if observation.inter is None:
        raise RuntimeError("the layer made no attention call while it was observed")
    received = observation.inter[visual] / (~visual).sum()
    return float(received.topk(min(TOP_TOKENS, len(received))).values.sum())


def median_cosine(tokens: Tensor) -> float:
    """Median cosine over all pairs of different tokens [V, D]; 1.0 for a single token, which has no pair."""
    count = len(tokens)
    if count < 2:
        return 1.0
    unit = nn.functional.normalize(tokens.float(), dim=-1)
    first, second = torch.triu_indices(count, count, offset=1, device=tokens.device)
    return float((unit @ unit.T)[first, second].median())


def finite_numbers(numbers: Numbers, name: str) -> list[float]:
    """As floats. QuotaError, by their `name`, if there are none, or NaN or infinity is among them."""
    values = [float(number) for number in numbers]
    if not values:
        raise QuotaError(f"{name} are empty; give at least one number")
    if not all(map(math.isfinite, values)):
        raise QuotaError(f"{name} hold NaN or infinity; check the model's outputs on the calibration samples")
    return values
