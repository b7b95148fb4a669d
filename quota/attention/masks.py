"""Which keys a query may look at, in families whose attention is not simply causal.

    allowed(q, k) = present(k)  and  (k <= q  or  block(q) = block(k) >= 0)  and  k > q - window

Blocks are images, or a whole prompt, whose tokens see one another; a window ends a layer's sight. All is said in the
original positions of tokens, so it holds for what pruning leaves of them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from quota.attention.state import NAME, implementation
from quota.errors import QuotaError

_AS_NUMBERS, _AS_TRUTH = "eager", ("sdpa", NAME)


def allowed_pairs(queries: Tensor, keys: Tensor, present: Tensor, blocks: Tensor | None, window: int | None) -> Tensor:
    """[B, T, S] bool from the positions of T queries [B, T] and S keys [B, S], of which those `present` [B, S] exist.

    `blocks` [B, N] is the block of the token at each position. Positions of absent keys are never read.
    """
    q, k = queries[:, :, None], keys[:, None, :]
    allowed = k <= q
    if blocks is not None:
        of_query, of_key = (blocks.gather(1, places.clamp(min=0).long()) for places in (queries, keys))
        allowed = allowed | ((of_query[:, :, None] == of_key[:, None]) & (of_query[:, :, None] >= 0))
    if window is not None:
        allowed = allowed & (k > q - window)
    return allowed & present[:, None]


def as_attention_mask(allowed: Tensor, config: PreTrainedConfig, dtype: torch.dtype) -> Tensor:
    """[B, T, S] bool -> the [B, 1, T, S] that layers with this config take in this pass."""
    if implementation(config) in _AS_TRUTH:
        return allowed[:, None]
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(
        ~allowed, torch.finfo(dtype).min
    )[:, None]


def as_truth(mask: Tensor) -> Tensor:
    """A [B, 1, T, S] mask of either kind -> bool, true where a query may look."""
    return mask if mask.dtype == torch.bool else mask >= 0


def keys_of_all(mask: Tensor | None, key: Tensor) -> Tensor | None:
    """[B, S] bool: keys that the mask [B, 1, T, S] leaves to every query; None if not the same ones to all of them."""
    batch, _, length, _ = key.shape
    if mask is None:
        return torch.ones(batch, length, dtype=torch.bool, device=key.device)
    seen = mask if mask.dtype == torch.bool else mask == 0
    same = mask.ndim == 4 and torch.equal(seen, seen[:, :1, :1].expand_as(seen))
    # Numbers between would be added to the logits.
    hidden = mask.dtype == torch.bool or bool((seen | (mask <= torch.finfo(mask.dtype).min)).all())
    return seen[:, 0, 0].expand(batch, -1) if same and hidden else None


def check_implementation(config: PreTrainedConfig) -> None:
    """QuotaError for an attention implementation that cannot be told more than which tokens are padding."""
    name = implementation(config)
    if name not in (_AS_NUMBERS, *_AS_TRUTH):
        raise QuotaError(
            f"attention of a {config.model_type} decoder is not causal, which {name} cannot do here; "
            "use model.set_attn_implementation('sdpa')"
        )
