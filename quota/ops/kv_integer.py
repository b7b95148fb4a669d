"""The quantiser of keys and values, and the packed form in which a cache holds them.

    scale = (max(x) - min(x)) / (2^b - 1)      zero = min(x)      both rounded to float16
    q     = clip(round((x - zero) / scale), 0, 2^b - 1)           x ~ zero + scale * q

Asymmetric, one scale and zero per token and head: keys and values are read once a step for every token, so what
counts is bytes, and 4 bytes beside a head of 64 channels cost half a bit a number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quota.errors import QuotaError

OUT_OF_RANGE = "keys or values hold NaN, infinity or numbers beyond 65504; check the model in float32"
"""What every backend says of numbers that cannot be stored."""


def quantize_kv(x: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise [..., D] over its last dimension: q uint8 [..., D], scale and zero float16 [..., 1].

    QuotaError if x holds NaN, infinity or anything beyond float16, in which scale and zero are kept.
    """
    x = x.float()
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    levels = 2**bits - 1
    smallest = torch.finfo(torch.float16).tiny
    scale, zero = ((high - low) / levels).clamp(min=smallest).half(), low.half()
    if not bool((scale.isfinite() & zero.isfinite()).all()):
        raise QuotaError(OUT_OF_RANGE)
    # Rounded against the stored scale and zero, not against the exact ones.
    q = ((x - zero.float()) / scale.float()).round().clamp(0, levels)
    return q.to(torch.uint8), scale, zero


def dequantize_kv(q: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """zero + scale * q, float32 [..., D]."""
    return q.float() * scale.float() + zero.float()


def packed_width(width: int, bits: int) -> int:
    """Bytes of a packed head of `width` channels. QuotaError if they are not whole."""
    if width % 8:
        raise QuotaError(f"a head of {width} channels cannot be packed: not a multiple of 8; use kv_bits=16")
    return width * bits // 8


def pack(q: Tensor, bits: int) -> Tensor:
    """Pack numbers of `bits` bits: uint8 [..., D] -> uint8 [..., D * bits / 8], D a multiple of 8.

    The bits of a number are split into fields that fill a byte evenly (3 bits: two low ones, then one high one), and
    the packed fields follow one another.
    """
    packed_width(q.shape[-1], bits)
    packed, start = [], 0
    for width in _fields(bits):
        values = (q >> start & 2**width - 1).unflatten(-1, (-1, 8 // width))
        places = torch.arange(0, 8, width, dtype=torch.uint8, device=q.device)
        # The fields do not overlap: their sum is their union.
        packed.append((values << places).sum(dim=-1, dtype=torch.uint8))
        start += width
    return torch.cat(packed, dim=-1)


def unpack(packed: Tensor, bits: int, width: int) -> Tensor:
    """Undo `pack`: uint8 [..., width * bits / 8] -> uint8 [..., width]."""
    fields = _fields(bits)
    q, start = torch.zeros((), dtype=torch.uint8, device=packed.device), 0
    for field, values in zip(fields, packed.split([width * field // 8 for field in fields], dim=-1), strict=True):
        places = torch.arange(0, 8, field, dtype=torch.uint8, device=packed.device)
        q = q | (values.unsqueeze(-1) >> places & 2**field - 1).flatten(-2) << start
        start += field
    return q


def _fields(bits: int) -> list[int]:
    return [2, 1] if bits == 3 else [bits]
