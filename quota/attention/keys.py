"""What is done to keys, behind RoPE, before a cache quantises them, and undone when they are read.

    k' = (k - R_t c_0 - c) M            scores q k^T = (q M^-T) k'^T + q (R_t c_0)^T + q c^T

The last term is the same for every key of a query, so softmax does not see it: c, the mean key of a head, is left out
and never added again. Without it the channels that RoPE hardly turns would spend most of the range of 4 bits on a
constant. M balances the key against the queries that read it (quota/quantization/balance.py), for each key head; the
Hadamard rotation of the cache follows. Both are done, and undone, by the operators of the cache
(quota/ops/head_transform.py).

Where the key projection has a bias (Qwen2), most of a key may be constant before RoPE, in channels that RoPE turns: c
misses these. So c_0, the bias, is turned to each token and taken out as well. That term differs from key to key, and is
added again (quota/attention/turns.py).

c_0, c and M are kept by the attention module of a decoder layer, where checkpoints find them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from quota.ops.head_transform import HeadTransform
from quota.ops.source import Source
from quota.quantization.balance import balance

NAME = "key_transform"
"""Name of the module in the attention of a decoder layer."""


class KeyTransform(nn.Module):
    """c and M of one layer's key heads: buffers `center` [G, D] and `matrix` [G, D, D], float32.

    And c_0, `turning` [G, D]; None where keys have no centre before RoPE.
    """

    center: Tensor
    matrix: Tensor
    turning: Tensor | None

    def __init__(self, heads: int, width: int, device: torch.device | str | None = None, turning: bool = False) -> None:
        """The identity, for loaders to fill."""
        super().__init__()
        self.register_buffer("turning", torch.zeros(heads, width, device=device) if turning else None)
        self.register_buffer("center", torch.zeros(heads, width, device=device))
        self.register_buffer("matrix", torch.eye(width, device=device).repeat(heads, 1, 1))
        self._operand: HeadTransform | None = None
        self._source = Source()

    @classmethod
    def from_moments(cls, mean: Tensor, keys: Tensor, queries: Tensor, turning: Tensor | None = None) -> KeyTransform:
        """From the mean key [G, D], and second moments [G, D, D] of centred keys and of the queries that read them.

        They are of keys less R_t c_0, if there is `turning` [G, D].
        """
        transform = cls(*mean.shape, device=mean.device)
        transform.turning = turning
        # Exact in bfloat16, so that a checkpoint in half the width holds the same transform.
        transform.center = mean.bfloat16().float()
        transform.matrix = balance(keys, queries).bfloat16().float()
        return transform

    def operand(self) -> HeadTransform:
        """The transform as the cache's operators take it; the same one for as long as the buffers are."""
        if self._operand is None or not self._source.is_still(self.center, self.matrix):
            self._source = Source(self.center, self.matrix)
            self._operand = HeadTransform(self.center.float(), self.matrix)
        return self._operand


def key_transforms(decoder_layers: nn.ModuleList) -> list[KeyTransform | None]:
    """The transform of every decoder layer; None for a layer without."""
    found = [getattr(getattr(layer, "self_attn", None), NAME, None) for layer in decoder_layers]
    return [transform if isinstance(transform, KeyTransform) else None for transform in found]


def key_bias(attention: Any, heads: int) -> Tensor | None:
    """c_0 [G, D] of the attention module of a decoder layer, as a checkpoint holds it; None without a bias of keys."""
    bias = getattr(attention.k_proj, "bias", None)
    # Exact in bfloat16, as all of a transform.
    return None if bias is None else bias.detach().bfloat16().float().view(heads, -1)


def add_key_transforms(text_model: Any) -> None:
    """Give every decoder layer the identity, for a loader to fill."""
    config = text_model.config
    for layer in text_model.layers:
        attention = layer.self_attn
        turning = getattr(attention.k_proj, "bias", None) is not None
        shape = config.num_key_value_heads, attention.head_dim
        attention.add_module(NAME, KeyTransform(*shape, _device(attention), turning))


def _device(module: nn.Module) -> torch.device | None:
    tensors = (*module.parameters(), *module.buffers())
    return tensors[0].device if tensors else None
