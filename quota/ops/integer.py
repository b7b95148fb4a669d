"""Integer quantisers, and the packed form in which weights are stored.

Activations: asymmetric, dynamic, one scale and zero point for every token and group of channels,

    scale = (max(x, 0) - min(x, 0)) / (2^b - 1)      zero = round(-min(x, 0) / scale)
    q     = clip(round(x / scale) + zero, 0, 2^b - 1)      x ~ scale * (q - zero)

Weights: symmetric, one scale for every output row and group of input channels, w ~ scale * q, with the scale
chosen by a search over clipping ratios and rounded to bfloat16, so that a checkpoint holds it exactly.

Definitions, rounding (half to even) and packing are those of compressed-tensors ("group" strategy, dynamic,
format "pack-quantized"), which lets stock tools read our checkpoints; zero points and values are kept here as
0 .. 2^b - 1 where that library keeps them shifted down by 2^(b-1).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from quota.errors import QuotaError

CLIP_STEPS = 32
SMALLEST_CLIP = 0.4


def quantize_activation(x: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise `x` [..., K] per token and group of `group` channels (`group` divides K).

    Returns q uint8 [..., K] in 0 .. 2^bits - 1, scale float32 [..., K / group], zero int32 [..., K / group].
    Raises QuotaError if x holds NaN or infinity, or spans more than float32 can.
    """
    groups = x.float().unflatten(-1, (-1, group))
    low, high = groups.amin(-1).clamp_(max=0), groups.amax(-1).clamp_(min=0)
    scale = (high - low) / (2**bits - 1)
    if not torch.isfinite(scale).all():
        raise QuotaError(
            "activations hold NaN or infinity and cannot be quantised; run the model in float32 to find where"
        )
    # All zeros, or only subnormal numbers: any scale will do, they become zero.
    numeric = torch.finfo(torch.float32)
    scale = torch.where(scale < numeric.tiny, numeric.eps, scale)

    # Rounded in the shifted range, as compressed-tensors does, so that ties fall on the same side.
    shift = 2 ** (bits - 1)
    zero = (-shift - low / scale).round_().clamp_(-shift, shift - 1)
    q = (groups / scale.unsqueeze(-1)).add_(zero.unsqueeze(-1)).round_().clamp_(-shift, shift - 1)
    return q.add_(shift).to(torch.uint8).flatten(-2), scale, zero.add_(shift).to(torch.int32)


def dequantize_activation(q: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """scale * (q - zero) in float32 [..., K], for what `quantize_activation` returned."""
    groups = q.float().unflatten(-1, (scale.shape[-1], -1))
    return (groups.sub_(zero.unsqueeze(-1)).mul_(scale.unsqueeze(-1))).flatten(-2)


def quantize_weight(weight: Tensor, bits: int, group: int, importance: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Round `weight` [N, K] to nearest, per row and group of `group` input channels (`group` divides K).

    `importance` [K] weighs the squared error of each input channel in the search for scales (all alike
    without). Returns q int8 [N, K] in -2^(bits-1) .. 2^(bits-1) - 1 and scale float32 [N, K / group], every
    scale exact in bfloat16. Raises QuotaError if a weight is not finite.
    """
    groups = weight.float().unflatten(-1, (-1, group))
    weighing = None if importance is None else importance.float().unflatten(-1, (-1, group))
    scale = search_scale(groups, bits, weighing)
    return round_weight(groups, scale.unsqueeze(-1), bits).to(torch.int8).flatten(-2), scale.float()


def dequantize_weight(q: Tensor, scale: Tensor) -> Tensor:
    """scale * q in float32 [N, K], for what `quantize_weight` returned."""
    groups = q.float().unflatten(-1, (scale.shape[-1], -1))
    return groups.mul_(scale.float().unsqueeze(-1)).flatten(-2)


def search_scale(groups: Tensor, bits: int, importance: Tensor | None = None) -> Tensor:
    """Best symmetric scale [...] of each group of weights [..., group], exact in bfloat16, in their dtype.

    Tries clipping ratios from 1 (the largest weight is representable) down to 0.4, and keeps the one with the
    least squared error, weighed by `importance` (broadcast against the groups).
    """
    largest = groups.abs().amax(-1)
    if not torch.isfinite(largest).all():
        raise QuotaError("weights hold NaN or infinity and cannot be quantised; check the model's checkpoint")
    best = torch.ones_like(largest)
    least = torch.full_like(largest, torch.inf)
    for ratio in torch.linspace(1.0, SMALLEST_CLIP, CLIP_STEPS).tolist():
        scale = _as_bfloat16(largest * (ratio / (2 ** (bits - 1) - 1)))
        rounded = round_weight(groups, scale.unsqueeze(-1), bits)
        error = rounded.mul_(scale.unsqueeze(-1)).sub_(groups).square_()
        loss = (error if importance is None else error.mul_(importance)).sum(-1)
        best = torch.where(loss < least, scale, best)
        least = torch.minimum(loss, least)
    return best


def round_weight(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Nearest integers to weight / scale in -2^(bits-1) .. 2^(bits-1) - 1, still in floating point."""
    limit = 2 ** (bits - 1)
    return (weight / scale).round_().clamp_(-limit, limit - 1)


def _as_bfloat16(scale: Tensor) -> Tensor:
    """Round to what bfloat16 holds; scales too small for it (a group of zeros) become 1."""
    rounded = scale.to(torch.bfloat16)
    usable = rounded >= torch.finfo(torch.bfloat16).tiny
    return torch.where(usable, rounded, torch.ones_like(rounded)).to(scale.dtype)


def pack_int32(q: Tensor, bits: int) -> Tensor:
    """Pack `q` int8 [N, K] (4 or 8 bits, signed) into int32 [N, ceil(K * bits / 32)].

    Value k of a row sits at bit k * bits of the row, shifted up by 2^(bits-1); a last word that is not full
    ends in zero bits. This is the layout of compressed-tensors' "pack-quantized" format.
    """
    unsigned = (q.to(torch.int16) + 2 ** (bits - 1)).to(torch.uint8)
    values_per_word = 32 // bits
    unsigned = functional.pad(unsigned, (0, -q.shape[-1] % values_per_word))
    if bits == 4:
        unsigned = unsigned[..., 0::2] | unsigned[..., 1::2] << 4
    return unsigned.contiguous().view(torch.int32)


def unpack_int32(packed: Tensor, bits: int, columns: int) -> Tensor:
    """Undo `pack_int32`: int32 [N, words] to int8 [N, columns]."""
    unsigned = packed.contiguous().view(torch.uint8)
    if bits == 4:
        unsigned = torch.stack((unsigned & 0xF, unsigned >> 4), dim=-1).flatten(-2)
    return (unsigned[..., :columns].to(torch.int16) - 2 ** (bits - 1)).to(torch.int8)
