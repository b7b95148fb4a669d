"""Stages: runs of decoder layers in whose caches one and the same share of the visual tokens is stored.

A layer that cuts runs on all tokens present, and stores those that it keeps: it is the first of a new stage. How many
those are follows from the sizes of a request's images alone, so the scheduler, which knows nothing of scores, can count
blocks before the request has run, and again after it was preempted: there is nothing to remember.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import gcd
from typing import Any

from quota.pruning.recipe import PruningRecipe
from quota.pruning.schedule import keep_count


@dataclass(frozen=True)
class Stages:
    """The stages of a decoder under a recipe; without one there is a single stage."""

    cuts: tuple[int, ...] = ()
    """The layers that cut, ascending; -1 stands for the place before the first one."""
    ratios: tuple[float, ...] = ()
    """What is kept after each, relative to all."""

    @classmethod
    def of(cls, recipe: PruningRecipe | None) -> Stages:
        return cls() if recipe is None else cls(recipe.layers, recipe.keep_ratios)

    def stage(self, layer: int) -> int:
        """The stage of a decoder layer, from 0: how many cuts its cache has come through."""
        return sum(cut <= layer for cut in self.cuts)

    def keep(self, layer: int) -> float:
        """Which share of an image's tokens a layer stores."""
        return (1.0, *self.ratios)[self.stage(layer)]

    def parts(self, depth: int) -> list[int]:
        """Of each of `depth` layers, its part of its stage: all parts of all stages have equally many layers.

        vLLM gives blocks to groups of layers, all of one size, and pads those that are not.
        """
        stages = [self.stage(layer) for layer in range(depth)]
        firsts = [0, *(layer for layer, (one, other) in enumerate(pairwise(stages), 1) if one != other), depth]
        size = gcd(*(end - first for first, end in pairwise(firsts)))
        return [layer // size for layer in range(depth)]


def dropped(keep: float, sizes: Iterable[int]) -> int:
    """How many tokens a stage that keeps a share `keep` leaves out, of images of these sizes."""
    return sum(size - keep_count(keep, size) for size in sizes)


def image_sizes(features: Sequence[Any]) -> list[int]:
    """Visual tokens of each image, from vLLM's `mm_features` of a request."""
    return [feature.mm_position.get_num_embeds() for feature in features]
