"""What one layer's forward pass says about its visual tokens, and which of them go on.

The tokens of every image become one row of the scorer's input, so an image is normalised, ranked and cut among its own
tokens (equations 5 and 6-9), whatever stands beside it in the prompt or in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quota import ops
from quota.attention.observation import Observation
from quota.ops.choice import Cut
from quota.pruning.presence import Presence
from quota.pruning.recipe import PruningRecipe
from quota.pruning.rows import ImageRows, image_rows
from quota.pruning.schedule import keep_count
from quota.pruning.scorers import Signals, scorer
from quota.quantization.linear import input_spec
from quota.scheme import QuantizationScheme


@dataclass(frozen=True)
class Choice:
    """What one cut decided, over the T places of B samples."""

    cut: Cut
    """Which go on, all text and no padding among them."""
    all_kept: bool
    """Whether nothing is dropped."""
    places: Tensor
    """[R, V]: the visual tokens of each of R images, as places in the flattened batch."""
    valid: Tensor
    """[R, V] bool, False where an image has fewer tokens."""
    score: Tensor
    """[R, V]"""

    def scores(self) -> Tensor:
        """The score at every place, [B, T] float32, NaN where there is no visual token."""
        scores = torch.full(self.cut.kept.shape, torch.nan, dtype=torch.float32, device=self.score.device)
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
    rows = image_rows(images, presence.sizes)
    ratio = recipe.keep_ratios[recipe.layers.index(layer)]
    counts = [min(keep_count(ratio, size), there) for size, there in zip(rows.sizes, rows.counts, strict=True)]

    method = scorer(recipe.scorer)
    tokens = rows.of(hidden.detach())
    measured = _attention_signals(observation, rows)
    if "risk" in method.SIGNALS and scheme is not None:
        measured["risk"] = risk(tokens, scheme)
    if "budget" in method.SIGNALS:
        measured["budget"] = torch.tensor(counts, device=images.device)
    if tower is not None:
        measured["tower"] = rows.of(tower.gather(1, presence.index))
    if "text" in method.SIGNALS:
        text, text_valid = _text(presence, hidden.detach())
        measured |= {"text": text[rows.sample], "text_valid": text_valid[rows.sample]}
    signals = Signals(hidden=tokens, valid=rows.valid, **measured)
    weights = {name: weight for name, weight in recipe.weights.items() if weight}
    score = method.score(signals, weights, recipe.percentiles)
    places = rows.flat(images.shape[1])
    cut = ops.for_tokens(images.device).cut(score, counts, rows.valid, places, presence.text)
    return Choice(cut, counts == rows.counts, places, rows.valid, score)


def _attention_signals(observation: Observation | None, rows: ImageRows) -> dict[str, Tensor]:
    """What was measured while the layer ran, at the tokens of each row."""
    fields = {"inter": "inter", "intra": "intra", "last": "last", "keys": "states"}
    measured = {name: getattr(observation, field, None) for name, field in fields.items()}
    return {name: rows.of(signal) for name, signal in measured.items() if signal is not None}


def _text(presence: Presence, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """`hidden` [B, T, D] at the text tokens [B, N, D], in order, and which of them are no padding [B, N]."""
    text = presence.text
    order = text.int().argsort(dim=1, descending=True, stable=True)[:, : int(text.sum(dim=1).max())]
    return hidden.gather(1, order[..., None].expand(-1, -1, hidden.shape[-1])), text.gather(1, order)


def risk(tokens: Tensor, scheme: QuantizationScheme) -> Tensor:
    """||Q(v) - v||_2 of [R, V, D] -> [R, V] float32, Q the activation quantiser deployed in the decoder."""
    if "decoder" not in scheme.modules:
        return torch.zeros(tokens.shape[:2], dtype=torch.float32, device=tokens.device)
    width = tokens.shape[-1]
    error = ops.for_tokens(tokens.device).activation_error
    rows = tokens.reshape(-1, width)
    return error(rows, input_spec(scheme, width)).view(tokens.shape[:2])
