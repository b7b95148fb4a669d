"""The embedding in 8 bits: a byte a number, and one scale a row.

    e_v = m H (s_v q_v)       q in -128 .. 127, s_v of eight significant bits

H is the block Hadamard rotation, its own inverse, and m is 1 but for Gemma, which multiplies what is looked up. A
lookup dequantises the rows that it needs. This is how lm_head stores its weights, rounding to nearest included, so
that a model whose head is tied to its embedding needs these integers once: `TiedHead` multiplies by them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from quota.errors import QuotaError
from quota.ops.hadamard import block_hadamard
from quota.ops.packing import unpack_int32
from quota.quantization.linear import W4A4Linear, nearest
from quota.scheme import QuantizationScheme


class QuantizedEmbedding(W4A4Linear):
    """An embedding [V, D] with the buffers of a linear layer of 8-bit weights: V outputs, D inputs."""

    def __init__(
        self,
        tokens: int,
        width: int,
        scheme: QuantizationScheme,
        dtype: torch.dtype,
        device: torch.device | str | None = None,
        multiplier: float = 1.0,
    ) -> None:
        """An empty one, for loaders to fill; `dtype` is that of what is looked up, and follows `model.to`."""
        super().__init__(width, tokens, False, scheme, dtype, device)
        self.dtype = dtype
        self.multiplier = multiplier

    @classmethod
    def empty_for(cls, embedding: nn.Embedding, scheme: QuantizationScheme) -> QuantizedEmbedding:
        """An empty one in place of `embedding`. QuotaError for a class that is not known to look up rows alone."""
        if (multiplier := _multiplier(embedding)) is None:
            raise QuotaError(f"the model's embedding is {type(embedding).__name__}; use embedding_bits=16")
        tokens, width = embedding.weight.shape
        return cls(tokens, width, scheme, embedding.weight.dtype, embedding.weight.device, multiplier)

    @classmethod
    def from_embedding(cls, embedding: nn.Embedding, scheme: QuantizationScheme) -> QuantizedEmbedding:
        """Quantise `embedding`, which stays as it is, to nearest. Errors as `empty_for`."""
        layer = cls.empty_for(embedding, scheme)
        layer.weight_packed, layer.weight_scale = nearest(embedding.weight.detach(), layer.spec)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Token ids x [...] to their rows [..., D]; IndexError for an id that is no row, as of any embedding."""
        q = unpack_int32(functional.embedding(x, self.weight_packed), self.spec.bits, self.in_features)
        rows = q.float() * functional.embedding(x, self.weight_scale).float()
        rows = block_hadamard(rows, self.spec.inputs.hadamard).to(self.dtype)
        return rows if self.multiplier == 1 else rows * torch.tensor(self.multiplier, dtype=rows.dtype)

    def project(self, x: Tensor) -> Tensor:
        """Hidden states x [..., D] to logits [..., V] by the same integers, as a `W4A4Linear`."""
        return super().forward(x)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.weight_packed.device)).dtype
        return self


class TiedHead(nn.Module):
    """lm_head of a model that ties it to the embedding: without a tensor of its own."""

    def __init__(self, embedding: QuantizedEmbedding) -> None:
        super().__init__()
        # In a tuple, so that it is no submodule, and what it holds has one name.
        self._embedding = (embedding,)

    @property
    def embedding(self) -> QuantizedEmbedding:
        """Whose integers these are."""
        return self._embedding[0]

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] to logits [..., V] in x's dtype."""
        return self.embedding.project(x)


def _multiplier(embedding: Any) -> float | None:
    """What the embedding multiplies its rows by; None if that cannot be told."""
    if type(embedding) is nn.Embedding:
        return 1.0
    return getattr(embedding, "scalar_embed_scale", None)
