"""A pruned decoder the plain way: one sample, no hooks, no cache, no padding, masks written out.

All tokens of a conversation stand in one row. `passes` says how they were fed: the prompt is one pass, every generated
token is one. In each layer a token attends to earlier tokens of its own pass that are still there when the layer
starts, and to those of earlier passes that this layer kept; where the family says so, also to later tokens of its
block, and no further back than the layer's window. Attention, scores (equations 6-9) and the choice are written out
here once more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from quota.pruning.recipe import PruningRecipe

KV = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Risk = Callable[[Tensor], Tensor]


@dataclass
class Row:
    """What enters the decoder."""

    hidden: Tensor
    """[L, D]"""
    images: Tensor
    """[L]: the image of each token, -1 for text."""
    rotary: list[tuple[Tensor, Tensor]]
    """cos and sin [L, W] of every layer."""
    blocks: Tensor | None = None
    """[L]: tokens of one block see one another, -1 is in none."""
    deep: list[Tensor] = field(default_factory=list)
    """[L, D] each: added behind the first layers."""


@dataclass
class Outcome:
    logits: Tensor
    """[L, vocabulary]; those of dropped tokens mean nothing."""
    kept: dict[int, list[int]] = field(default_factory=dict)
    """Candidate layer -> visual tokens left, numbered over the whole row."""


@torch.no_grad()
def naive(
    model: Any,
    recipe: PruningRecipe,
    row: Row,
    passes: Sequence[int],
    stored: KV = lambda keys, values: (keys, values),
    risk: Risk | None = None,
) -> Outcome:
    """Logits of the row, L tokens, fed in `passes` (lengths, adding up to L).

    `stored` maps keys and values [heads, L, D] to what a cache would return of them.
    """
    hidden, image = row.hidden, row.images
    length = len(hidden)
    assert sum(passes) == length
    decoder = model.model.text_model if hasattr(model.model, "text_model") else model.model.language_model
    visual = image >= 0
    number = visual.cumsum(0) - 1
    places = torch.arange(length)
    outcome = Outcome(torch.empty(0))

    alive = torch.ones(length, dtype=torch.bool)
    if -1 in recipe.layers:
        for one in image[visual].unique().tolist():
            members = (image == one).nonzero().flatten()
            alive[_dropped(recipe, -1, members, {"mag": hidden[members].norm(dim=-1)}, len(members))] = False
        outcome.kept[-1] = number[alive & visual].tolist()
    for index, layer in enumerate(decoder.layers):
        attention, normed = layer.self_attn, layer.input_layernorm(hidden)
        queries, keys, values = (
            projection(normed).view(length, -1, attention.head_dim)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        if hasattr(attention, "q_norm"):
            queries, keys = attention.q_norm(queries), attention.k_norm(keys)
        queries, keys, values = (x.transpose(0, 1) for x in (queries, keys, values))
        queries, keys = (_rotate(x, *row.rotary[index]) for x in (queries, keys))
        keys, values = stored(keys, values)
        survivors, mixed, start = alive.clone(), [], 0
        for count in passes:
            rows = torch.arange(start, start + count)
            allowed = places <= rows[:, None]
            if row.blocks is not None:
                allowed |= (row.blocks[rows][:, None] == row.blocks) & (row.blocks[rows] >= 0)[:, None]
            if getattr(attention, "sliding_window", None) is not None:
                allowed &= places > rows[:, None] - attention.sliding_window
            # Earlier passes: what this layer kept. This pass: what came in.
            allowed &= torch.cat([survivors[:start], alive[start:]])
            weights, heads = [], []
            for head, query in enumerate(queries):
                shared = head * len(keys) // len(queries)
                weights.append(_softmax(query[rows] @ keys[shared].T * attention.scaling, allowed))
                heads.append(weights[-1] @ values[shared])
            mixed.append(torch.cat(heads, dim=-1))
            if index in recipe.layers and visual[rows].any():
                average = torch.stack(weights).mean(0)
                for one in image[rows][visual[rows]].unique().tolist():
                    members = rows[(image[rows] == one) & alive[rows]]
                    text, pictures = ~visual[rows], visual[rows] & alive[rows]
                    metrics = {
                        "inter": average[text][:, members].sum(0),
                        "intra": average[pictures][:, members].sum(0),
                        "mag": hidden[members].norm(dim=-1),
                    }
                    if risk is not None:
                        metrics["risk"] = risk(hidden[members])
                    survivors[_dropped(recipe, index, members, metrics, int((image == one).sum()))] = False
            start += count
        if index in recipe.layers:
            outcome.kept[index] = number[survivors & visual].tolist()
        hidden = _finish(layer, hidden, attention.o_proj(torch.cat(mixed)))
        if index < len(row.deep):
            hidden = hidden + row.deep[index]
        alive = survivors
    outcome.logits = model.lm_head(decoder.norm(hidden))
    return outcome


def _dropped(recipe: PruningRecipe, index: int, members: Tensor, metrics: dict[str, Tensor], size: int) -> Tensor:
    """Those of the tokens `members` of one image that do not go on from candidate layer `index`."""
    weighed = [name for name in metrics if recipe.weights.get(name)]
    score = torch.stack([recipe.weights[name] * _normalised(metrics[name]) for name in weighed]).sum(0)
    ratio = recipe.keep_ratios[recipe.layers.index(index)]
    budget = math.ceil(ratio * size - 1e-9)
    ranked = sorted(range(len(members)), key=lambda i: (-float(score[i]), i))
    return members[ranked[budget:]]


def _finish(layer: Any, hidden: Tensor, mixed: Tensor) -> Tensor:
    """The residual stream behind attention and MLP."""
    if hasattr(layer, "pre_feedforward_layernorm"):
        hidden = hidden + layer.post_attention_layernorm(mixed)
        return hidden + layer.post_feedforward_layernorm(layer.mlp(layer.pre_feedforward_layernorm(hidden)))
    hidden = hidden + mixed
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def _softmax(logits: Tensor, allowed: Tensor) -> Tensor:
    weights = logits.masked_fill(~allowed, -math.inf).softmax(dim=-1)
    # A dropped token attends to nothing; what it computes is never read.
    return weights.nan_to_num(0)


def _normalised(metric: Tensor) -> Tensor:
    low, high = torch.quantile(metric.double(), torch.tensor([0.01, 0.99], dtype=torch.float64))
    if low == high:
        return torch.zeros_like(metric)
    return ((metric.double().clamp(low, high) - low) / (high - low)).float()
