"""The quantiser of weights: whole steps inside one scale for every output row (docs/method.md).

    w_nk ~ s_n g_nj q_nk       q in -8 .. 7, step g in 1 .. 16 a whole number for each group j of input channels

so that g q fits int8, and a product with whole activations is one int32 sum over all channels. s_n has at most four
significant bits: then s_n g_nj is exact in bfloat16, and is stored as the scale of a group in the format that stock
tools read (`split_scales` finds s and g again). With 8 bits a row has one scale and no steps: w ~ s q.

A step is chosen by its squared error among all sixteen; that is the search for the best clipping as well. The row's
scale is such that the group with the largest weights, clipped as is best for it, gets a step of about 16.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quota.errors import QuotaError

LARGEST_STEP = 16
_CLIP_STEPS = 32
_SMALLEST_CLIP = 0.4
_SIGNIFICANT_BITS = 4

OLD_SCALES = (
    "weight scales are not whole multiples of one scale a row, as this version writes them: compress the model again"
)


def quantize_weight(
    weight: Tensor, bits: int, group: int, importance: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Round `weight` [N, K] to nearest, per row and group of `group` input channels (`group` divides K; K for 8 bits).

    `importance` [K] weighs the squared error of each input channel in the search for steps (all alike without). Returns
    q int8 [N, K], step uint8 [N, K / group] and scale float32 [N]. Raises QuotaError if a weight is not finite.
    """
    groups = weight.float().unflatten(-1, (-1, group))
    weighing = None if importance is None else importance.float().unflatten(-1, (-1, group))
    scale = row_scale(groups, bits, weighing)
    step = torch.ones_like(groups[..., 0]) if bits == 8 else search_step(groups, scale.unsqueeze(-1), weighing)
    rounded = round_weight(groups, (step * scale.unsqueeze(-1)).unsqueeze(-1), bits)
    return rounded.to(torch.int8).flatten(-2), step.to(torch.uint8), scale.float()


def dequantize_weight(q: Tensor, step: Tensor, scale: Tensor) -> Tensor:
    """s g q in float32 [N, K], for what `quantize_weight` returned."""
    return whole_weight(q, step).float().mul_(scale.float().unsqueeze(-1))


def whole_weight(q: Tensor, step: Tensor) -> Tensor:
    """g q, int8 [N, K], of q int8 [N, K] and step [N, K / group]."""
    return (q.unflatten(-1, (step.shape[-1], -1)) * step.to(torch.int8).unsqueeze(-1)).flatten(-2)


def row_scale(groups: Tensor, bits: int, importance: Tensor | None = None) -> Tensor:
    """s [N] of weights [N, K / group, group], in their dtype. Raises QuotaError if one is not finite."""
    largest = groups.abs().amax(-1)
    if not bool(torch.isfinite(largest).all()):
        raise QuotaError("weights hold NaN or infinity and cannot be quantised; check the model's checkpoint")
    if bits == 8:
        return _usable(_significant(largest.amax(-1) / 127, 8))
    best, least = torch.ones_like(largest), torch.full_like(largest, torch.inf)
    for ratio in torch.linspace(1.0, _SMALLEST_CLIP, _CLIP_STEPS).tolist():
        size = largest * (ratio / 7)
        loss = _loss(groups, size.clamp(min=torch.finfo(groups.dtype).tiny), importance)
        best = torch.where(loss < least, size, best)
        least = torch.minimum(loss, least)
    return _usable(_significant(best.amax(-1) / LARGEST_STEP, _SIGNIFICANT_BITS))


def search_step(groups: Tensor, scale: Tensor, importance: Tensor | None = None) -> Tensor:
    """The best steps [...] of weights [..., group] at `scale` [...]: whole numbers from 1 to 16, in their dtype.

    Best by squared error, weighed by `importance` (broadcast against the groups); the smaller of two that are alike.
    """
    best, least = torch.ones_like(groups[..., 0]), torch.full_like(groups[..., 0], torch.inf)
    for step in range(1, LARGEST_STEP + 1):
        loss = _loss(groups, scale * step, importance)
        best = torch.where(loss < least, step, best)
        least = torch.minimum(loss, least)
    return best


def round_weight(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Nearest integers to weight / scale in -2^(bits-1) .. 2^(bits-1) - 1, still in floating point."""
    limit = 2 ** (bits - 1)
    return (weight / scale).round_().clamp_(-limit, limit - 1)


def split_scales(stored: Tensor) -> tuple[Tensor, Tensor]:
    """Step uint8 [N, G] and scale float32 [N] from s g [N, G], as a checkpoint holds it in bfloat16.

    s is the largest of which all are whole multiples. Raises QuotaError if some step then is above 16: an older version
    wrote such scales.
    """
    mantissa, exponent = torch.frexp(stored.to(torch.bfloat16).float())
    lowest = exponent.amin(-1, keepdim=True)
    # Of eight bits each, they are whole multiples of the last bit of the smallest; it is at most 16 times smaller.
    shift = exponent - lowest
    if bool((shift > 5).any()):
        raise QuotaError(OLD_SCALES)
    whole = torch.ldexp(mantissa, 8 + shift).to(torch.int32)
    common = whole[:, 0]
    for column in whole.unbind(-1)[1:]:
        common = torch.gcd(common, column)
    step = whole // common.unsqueeze(-1)
    if bool((step > LARGEST_STEP).any()):
        raise QuotaError(OLD_SCALES)
    return step.to(torch.uint8), torch.ldexp(common.float(), lowest[:, 0] - 8)


def join_scales(step: Tensor, scale: Tensor) -> Tensor:
    """s g as bfloat16 [N, G], exactly: what a checkpoint stores."""
    return (step.float() * scale.unsqueeze(-1)).to(torch.bfloat16)


def _loss(groups: Tensor, scale: Tensor, importance: Tensor | None) -> Tensor:
    """Squared errors [...] of weights [..., group] rounded to 4 bits at `scale` [...]."""
    scale = scale.unsqueeze(-1)
    error = round_weight(groups, scale, 4).mul_(scale).sub_(groups).square_()
    return (error if importance is None else error.mul_(importance)).sum(-1)


def _significant(scale: Tensor, bits: int) -> Tensor:
    """Rounded to so many significant bits."""
    mantissa, exponent = torch.frexp(scale)
    return torch.ldexp((mantissa * 2**bits).round_(), exponent - bits)


def _usable(scale: Tensor) -> Tensor:
    """Scales so small that a step of one is none of bfloat16 (a row of zeros) become 1."""
    return torch.where(scale >= torch.finfo(torch.bfloat16).tiny, scale, torch.ones_like(scale))
