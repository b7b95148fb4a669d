"""What one layer's forward pass says about its visual tokens, and which of them go on.

The tokens of every image become one row of the scorer's input, so an image is normalised, ranked and cut among its own
tokens (equations 5 and 6-9), whatever stands beside it in the prompt or in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quota import ops
from quota.allocation import keep_count
from quota.attention import Observation
from quota.presence import Presence, rows_at
from quota.recipe import PruningRecipe
from quota.scheme import QuantizationScheme
from quota.scorers import Signals, scorer


@dataclass(frozen=True)
class Choice:
    """What one cut decided, over the T places of B samples."""

    kept: Tensor
    """[B, T] bool: which go on, all text and no padding among them."""
    places: Tensor
    """[R, V]: the visual tokens of each of R images, as places in the flattened batch."""
    valid: Tensor
    """[R, V] bool, False where an image has fewer tokens."""
    score: Tensor
    """[R, V]"""

    def scores(self) -> Tensor:
        """The score at every place, [B, T] float32, NaN where there is no visual token."""
        scores = torch.full(self.kept.shape, torch.nan, device=self.kept.device)
        scores.view(-1)[self.places[self.valid]] = self.score[self.valid].float()
        return scores


def rank(
    presence: Presence,
    hidden: Tensor,
    observation: Observation | None,
    tower: Tensor | None,
    recipe: PruningRecipe,
    layer: int,
    scheme: QuantizationScheme | None,
) -> Choice:
    """Score the visual tokens that entered candidate layer `layer`, and choose.

    `hidden` [B, T, D] is the layer's input, `tower` [B, L] what the vision tower's attention says of the prompt's L
    places, if the scorer asks.
    """
    images = presence.images
    sample, image, places, valid = image_rows(images, presence.sizes.shape[1])
    rows = sample[:, None]
    ratio = recipe.keep_ratios[recipe.layers.index(layer)]
    sizes = presence.sizes[sample, image].tolist()
    budget = torch.tensor([keep_count(ratio, size) for size in sizes], device=images.device).minimum(valid.sum(dim=1))

    method = scorer(recipe.scorer)
    tokens = rows_at(hidden.detach(), places) if len(hidden) == len(places) == 1 else hidden.detach()[rows, places]
    measured = _attention_signals(observation, rows, places)
    if "risk" in method.SIGNALS and scheme is not None:
        measured["risk"] = risk(tokens, scheme)
    if tower is not None:
        measured["tower"] = tower.gather(1, presence.index)[rows, places]
    if "text" in method.SIGNALS:
        text, text_valid = _text(presence, hidden.detach())
        measured |= {"text": text[sample], "text_valid": text_valid[sample]}
    signals = Signals(hidden=tokens, valid=valid, budget=budget, **measured)
    weights = {name: weight for name, weight in recipe.weights.items() if weight}
    score = method.score(signals, weights, recipe.percentiles)

    flat = rows * images.shape[1] + places
    kept = presence.valid & (images < 0)
    kept.view(-1)[flat[ops.for_attention(images.device).best(score, budget, valid)]] = True
    return Choice(kept, flat, valid, score)


def _attention_signals(observation: Observation | None, rows: Tensor, places: Tensor) -> dict[str, Tensor]:
    """What was measured while the layer ran, at `places` [R, V] of the samples `rows` [R, 1]."""
    fields = {"inter": "inter", "intra": "intra", "last": "last", "keys": "states"}
    measured = {name: getattr(observation, field, None) for name, field in fields.items()}
    return {name: signal[rows, places] for name, signal in measured.items() if signal is not None}


def _text(presence: Presence, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """`hidden` [B, T, D] at the text tokens [B, N, D], in order, and which of them are no padding [B, N]."""
    text = presence.valid & (presence.images < 0)
    order = text.int().argsort(dim=1, descending=True, stable=True)[:, : int(text.sum(dim=1).max())]
    return hidden.gather(1, order[..., None].expand(-1, -1, hidden.shape[-1])), text.gather(1, order)


def image_rows(images: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One row for each image of a batch: `images` [B, T] (image of its sample, -1 none) -> R rows of at most V tokens.

    No sample has more than `count` images.

    Returns sample [R], image [R], places [R, V] (the row's tokens, ascending) and valid [R, V].
    """
    if len(images) == count == 1:
        # The common case has nothing to tell apart.
        places = (images >= 0).nonzero()[None, :, 1]
        zero = places.new_zeros(1)
        return zero, zero, places, torch.ones_like(places, dtype=torch.bool)
    member = images[:, None] == torch.arange(count, device=images.device)[:, None]
    sizes = member.sum(dim=2)
    sample, image = sizes.nonzero(as_tuple=True)
    size = sizes[sample, image]
    most = int(size.max())
    places = member[sample, image].int().argsort(dim=1, descending=True, stable=True)[:, :most]
    return sample, image, places, torch.arange(most, device=images.device) < size[:, None]


def risk(tokens: Tensor, scheme: QuantizationScheme) -> Tensor:
    """||Q(v) - v||_2 of [R, V, D] -> [R, V] float32, Q the activation quantiser deployed in the decoder."""
    if "decoder" not in scheme.modules:
        return torch.zeros(tokens.shape[:2], device=tokens.device)
    width = tokens.shape[-1]
    error = ops.for_attention(tokens.device).activation_error
    rows = tokens.reshape(-1, width)
    group, block = scheme.activation_group_for(width), scheme.hadamard_for(width)
    return error(rows, scheme.activation_bits, group, block).view(tokens.shape[:2])
