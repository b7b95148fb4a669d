"""How weights are packed and stored: the layout of compressed-tensors' "pack-quantized", which stock tools read."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def pack_int32(q: Tensor, bits: int) -> Tensor:
    """Pack `q` int8 [N, K] (4 or 8 bits, signed) into int32 [N, ceil(K * bits / 32)].

    Value k of a row sits at bit k * bits of the row, shifted up by 2^(bits-1); a last word that is not full
    ends in zero bits.
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
