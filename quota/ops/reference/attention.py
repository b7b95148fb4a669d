"""The jobs of cache and attention in plain torch: what every backend's must equal.

    quantize_kv       transform each head if there is a transform, rotate it by a Hadamard matrix, quantise, pack
    decode_attention  softmax(scaling * q K^T + added) V over the dequantised cache
    attention         the same for a prefill, with the sums of its weights over sets of queries,

                      inter_i = 1/H sum_h sum_{j in text}   A_h[j, i]
                      intra_i = 1/H sum_h sum_{k in visual} A_h[k, i]       (docs/method.md, equations 6-9)

A is the softmax that makes the output, so the sums cost no second pass. All arithmetic is float32, so other backends
differ by rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quota.ops import kv_integer
from quota.ops.hadamard import block_hadamard
from quota.ops.head_transform import HeadTransform
from quota.ops.interface import PackedTensor

# Attention weights held at once, in numbers; 2^24 of them are 64 MiB.
_CHUNK = 1 << 24


def quantize_kv(x: Tensor, bits: int, hadamard: int, transform: HeadTransform | None = None) -> PackedTensor:
    """[B, G, T, D] -> packed, rotated in blocks of `hadamard` channels; errors as `kv_integer.quantize_kv`."""
    mapped = x.float() if transform is None else transform.apply(x)
    q, scale, zero = kv_integer.quantize_kv(block_hadamard(mapped, hadamard), bits)
    return PackedTensor(kv_integer.pack(q, bits), scale, zero, bits, x.shape[-1], hadamard, transform)


def dequantize_kv(stored: PackedTensor, dtype: torch.dtype) -> Tensor:
    """[B, G, T, D] in `dtype`, rotated back (the rotation is its own inverse) and transformed back."""
    q = kv_integer.unpack(stored.packed, stored.bits, stored.width)
    x = block_hadamard(kv_integer.dequantize_kv(q, stored.scale, stored.zero), stored.hadamard)
    return (x if stored.transform is None else stored.transform.undo(x)).to(dtype)


def decode_attention(
    query: Tensor,
    keys: PackedTensor,
    values: PackedTensor,
    valid: Tensor | None,
    scaling: float,
    tokens: int | None = None,
    added: Tensor | None = None,
) -> Tensor:
    """One query a sequence over the packed cache: [B, H, 1, D] -> [B, H, 1, D]; zeros where nothing is valid.

    `added` float32 [B, H, T] is added to the logits, behind `scaling`.
    """
    if tokens is not None:
        keys, values = keys.first(tokens), values.first(tokens)
    key, value = dequantize_kv(keys, torch.float32), dequantize_kv(values, torch.float32)
    if valid is None:
        valid = torch.ones(key.shape[0], key.shape[2], dtype=torch.bool, device=key.device)
    # The query comes last: it may look at every slot.
    nothing = torch.zeros(key.shape[0], 0, 1, dtype=torch.bool, device=key.device)
    return attention(query, key, value, nothing, valid, scaling, added=None if added is None else added.unsqueeze(2))[0]


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: Tensor,
    visible: Tensor,
    scaling: float,
    causal: bool = True,
    added: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of the last T of S tokens, and what each of the S receives from R sets of queries.

    Args:
        query: [B, H, T, D] after the rotary embedding. key, value: [B, G, S, D], G divides H; the last T are the
            queries' own tokens.
        rows: [B, R, T] bool, the sets. visible: [B, S] bool, keys that may be attended to; or [B, T, S] bool, those of
            each query, whatever `causal` says. scaling: of the logits. causal: no query attends to a token behind it.
        added: [B, H, T, S], to the logits behind `scaling`.

    Returns the output [B, H, T, D] in the query's type and the sums [B, R, S] float32, averaged over heads. A query
    that sees no key gets zeros and gives nothing. Works in chunks of queries, never holding all weights.
    """
    batch, heads, queries, width = query.shape
    groups, length = key.shape[1], key.shape[2]
    sums = torch.zeros(batch, rows.shape[1], length, dtype=torch.float32, device=key.device)
    if not query.numel() or not length:
        return torch.zeros_like(query), sums
    grouped = query.reshape(batch, groups, heads // groups, queries, width)
    transposed, values = key.float().transpose(-1, -2).unsqueeze(2), value.float().unsqueeze(2)
    places = torch.arange(length, device=key.device)
    output = torch.empty_like(grouped)
    step = max(1, _CHUNK // max(1, batch * heads * length))
    for start in range(0, queries, step):
        chunk = slice(start, min(start + step, queries))
        logits = grouped[..., chunk, :].float() @ transposed * scaling
        if added is not None:
            logits += added.unflatten(1, (groups, -1))[..., chunk, :]
        if visible.ndim == 3:
            seen = visible[:, chunk]
        else:
            seen = visible[:, None]
            if causal:
                seen = seen & (places <= places[length - queries :][chunk, None])
        hidden = ~seen[:, None, None]
        # The lowest number, not infinity: a row without keys must not become NaN.
        weights = logits.masked_fill_(hidden, torch.finfo(torch.float32).min).softmax(dim=-1).masked_fill_(hidden, 0)
        output[..., chunk, :] = (weights @ values).to(output.dtype)
        sums += rows[..., chunk].float() @ weights.mean(dim=(1, 2))
    return output.reshape(query.shape), sums


def attention_naive(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: Tensor,
    visible: Tensor,
    scaling: float,
    causal: bool = True,
) -> tuple[Tensor, Tensor]:
    """`attention` head by head with all weights at once: what it must equal."""
    heads, queries = query.shape[1], query.shape[2]
    length, shared = key.shape[2], query.shape[1] // key.shape[1]
    earlier = torch.ones(queries, length, dtype=torch.bool, device=key.device)
    if causal:
        earlier = earlier.tril(length - queries)
    allowed = visible if visible.ndim == 3 else earlier & visible[:, None]
    sums = torch.zeros(query.shape[0], rows.shape[1], length, dtype=torch.float32, device=key.device)
    outputs = []
    for head in range(heads):
        logits = query[:, head].float() @ key[:, head // shared].float().transpose(1, 2) * scaling
        weights = logits.masked_fill(~allowed, -torch.inf).softmax(dim=-1).nan_to_num(0)
        outputs.append((weights @ value[:, head // shared].float()).to(query.dtype))
        sums += rows.float() @ weights / heads
    return torch.stack(outputs, dim=1), sums
