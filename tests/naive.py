"""A pruned decoder the plain way: one sample, no hooks, no cache, no padding, masks written out.

All tokens of a conversation stand in one row. `passes` says how they were fed: the prompt is one pass, every generated
token is one. In each layer a token attends to earlier tokens of its own pass that are still there when the layer
starts, and to those of earlier passes that this layer kept. Attention, scores (equations 6-9) and the choice are
written out here once more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from quota.recipe import PruningRecipe

KV = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Risk = Callable[[Tensor], Tensor]


@dataclass
class Outcome:
    logits: Tensor
    """[L, vocabulary]; those of dropped tokens mean nothing."""
    kept: dict[int, list[int]] = field(default_factory=dict)
    """Candidate layer -> visual tokens left, numbered over the whole row."""


@torch.no_grad()
def naive(
    model: LlavaForConditionalGeneration,
    recipe: PruningRecipe,
    ids: Tensor,
    pixels: Tensor,
    passes: Sequence[int],
    tokens_per_image: int,
    stored: KV = lambda keys, values: (keys, values),
    risk: Risk | None = None,
) -> Outcome:
    """Logits of the row `ids` [L] fed in `passes` (lengths, adding up to L).

    `stored` maps keys and values [heads, L, D] to what a cache would return of them.
    """
    assert sum(passes) == len(ids)
    decoder = model.model.language_model
    hidden = decoder.embed_tokens(ids)
    visual = ids == model.config.image_token_id
    if len(pixels):
        hidden[visual] = torch.cat(model.model.get_image_features(pixel_values=pixels).pooler_output)
    image = torch.where(visual, (visual.cumsum(0) - 1) // tokens_per_image, -1)
    number = visual.cumsum(0) - 1
    cos, sin = decoder.rotary_emb(hidden[None], torch.arange(len(ids))[None])
    outcome = Outcome(torch.empty(0))

    alive = torch.ones(len(ids), dtype=torch.bool)
    if -1 in recipe.layers:
        for one in image[visual].unique().tolist():
            members = (image == one).nonzero().flatten()
            alive[_dropped(recipe, -1, members, {"mag": hidden[members].norm(dim=-1)}, tokens_per_image)] = False
        outcome.kept[-1] = number[alive & visual].tolist()
    for index, layer in enumerate(decoder.layers):
        attention, normed = layer.self_attn, layer.input_layernorm(hidden)
        width = attention.head_dim
        queries, keys, values = (
            projection(normed).view(len(ids), -1, width).transpose(0, 1)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        queries, keys = (_rotate(x, cos[0], sin[0]) for x in (queries, keys))
        keys, values = stored(keys, values)
        survivors, mixed, start = alive.clone(), [], 0
        for length in passes:
            rows = torch.arange(start, start + length)
            allowed = torch.arange(len(ids))[None] <= rows[:, None]
            # Earlier passes: what this layer kept. This pass: what came in.
            there = torch.cat([survivors[:start], alive[start:]])
            weights, heads = [], []
            for head, query in enumerate(queries):
                shared = head * len(keys) // len(queries)
                weights.append(_softmax(query[rows] @ keys[shared].T / math.sqrt(width), allowed & there))
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
                    survivors[_dropped(recipe, index, members, metrics, tokens_per_image)] = False
            start += length
        if index in recipe.layers:
            outcome.kept[index] = number[survivors & visual].tolist()
        hidden = hidden + attention.o_proj(torch.cat(mixed))
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        alive = survivors
    outcome.logits = model.lm_head(decoder.norm(hidden))
    return outcome


def _dropped(
    recipe: PruningRecipe, index: int, members: Tensor, metrics: dict[str, Tensor], tokens_per_image: int
) -> Tensor:
    """Those of the tokens `members` of one image that do not go on from candidate layer `index`."""
    weighed = [name for name in metrics if recipe.weights.get(name)]
    score = torch.stack([recipe.weights[name] * _normalised(metrics[name]) for name in weighed]).sum(0)
    ratio = recipe.keep_ratios[recipe.layers.index(index)]
    budget = math.ceil(ratio * tokens_per_image - 1e-9)
    ranked = sorted(range(len(members)), key=lambda i: (-float(score[i]), i))
    return members[ranked[budget:]]


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
