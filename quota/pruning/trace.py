"""A record of what a Pruner did."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from quota.pruning.presence import Presence
from quota.pruning.ranking import Choice


@dataclass
class Trace:
    """The latest prefill with images of its thread (of a `generate` call: its only one). Empty until there was one.

    Tokens are numbered within their sample, in the order of the prompt, over all its images. Under beam search every
    beam is a sample.
    """

    kept: dict[int, Tensor] = field(default_factory=dict)
    """Candidate layer -> int64 [B, K]: visual tokens that went on, ascending, -1 behind a sample's last one."""
    scores: dict[int, Tensor] = field(default_factory=dict)
    """Candidate layer -> float32 [B, V]: score of every visual token, NaN for those dropped before."""
    tokens_per_layer: list[int] = field(default_factory=list)
    """Visual tokens that entered each decoder layer, summed over the batch."""

    def begin(self, presence: Presence, layers: int) -> None:
        """A new pass, in a decoder of so many layers."""
        self.kept, self.scores = {}, {}
        self.tokens_per_layer = [int((presence.images >= 0).sum())] * layers

    def add(self, layer: int, presence: Presence, choice: Choice) -> None:
        """The choice at a candidate layer, among the places present there."""
        number, visual = presence.numbers, presence.visual
        chosen, scores = choice.cut.kept & visual, choice.scores()
        beyond = presence.length
        ordered = number.masked_fill(~chosen, beyond).sort(dim=1).values[:, : int(chosen.sum(dim=1).max())]
        self.kept[layer] = ordered.masked_fill(ordered == beyond, -1)

        sample, place = visual.nonzero(as_tuple=True)
        most = int((presence.all_images >= 0).sum(dim=1).max())
        full = torch.full((len(visual), most), torch.nan, dtype=torch.float32, device=scores.device)
        full[sample, number[sample, place]] = scores[sample, place]
        self.scores[layer] = full

        behind = len(self.tokens_per_layer) - layer - 1
        self.tokens_per_layer[layer + 1 :] = [int(chosen.sum())] * behind
