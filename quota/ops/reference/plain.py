"""All jobs but the product of a linear in plain torch: what a backend has that brings none of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from quota.ops.activations import quantize_activation
from quota.ops.choice import cut
from quota.ops.hadamard import block_hadamard
from quota.ops.interface import CacheSpec, InputSpec, PackedTensor
from quota.ops.reference import attention, rows, tokens


class PlainTorch:
    """Runs wherever torch does, and stores and reads every cache."""

    # The job that is called as its module hides it from what follows, so it comes last of it.
    quantize_kv = staticmethod(attention.quantize_kv)
    dequantize_kv = staticmethod(attention.dequantize_kv)
    decode_attention = staticmethod(attention.decode_attention)
    attention = staticmethod(attention.attention)
    activation_error = staticmethod(tokens.activation_error)
    information = staticmethod(tokens.information)
    cut = staticmethod(cut)
    norm = staticmethod(rows.norm)
    activate = staticmethod(rows.activate)
    gated = staticmethod(rows.gated)

    def why_not(self) -> str | None:
        return None

    def lacks_cache(self, spec: CacheSpec) -> str | None:
        return None

    def leads_attention(self, dtype: torch.dtype) -> bool:
        return False

    def quantize(self, x: Tensor, inputs: InputSpec) -> tuple[Tensor, Tensor]:
        """v int8 [M, K] and s float32 [M] of x [M, K]; QuotaError for NaN or infinity."""
        return quantize_activation(block_hadamard(x.float(), inputs.hadamard), inputs.bits, inputs.group)

    def store_kv(
        self, keys: Tensor, values: Tensor, stored: tuple[PackedTensor, PackedTensor], at: int, read: bool
    ) -> tuple[Tensor, Tensor] | None:
        """One after the other, by the backend's own `quantize_kv` and `dequantize_kv`."""
        fresh = []
        for x, memory in zip((keys, values), stored, strict=True):
            new = self.quantize_kv(x, memory.bits, memory.hadamard, memory.transform)
            for name in ("packed", "scale", "zero"):
                getattr(memory, name).narrow(2, at, x.shape[2]).copy_(getattr(new, name))
            fresh.append(new)
        if not read:
            return None
        return self.dequantize_kv(fresh[0], keys.dtype), self.dequantize_kv(fresh[1], values.dtype)
