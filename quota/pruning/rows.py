"""The visual tokens of a batch, one row an image: an image is scored and cut among its own tokens.

Samples may hold several images, and images of several sizes, so rows are filled up on the right.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quota.ops.choice import rows_at


@dataclass(frozen=True)
class ImageRows:
    """R images of a batch [B, T], the largest of V tokens."""

    sample: Tensor
    """[R] of each image."""
    places: Tensor
    """[R, V] where its tokens stand, ascending; anything behind the last one."""
    valid: Tensor
    """[R, V] bool, False behind the last one."""
    counts: list[int]
    """Tokens of each that are there."""
    sizes: list[int]
    """Tokens of each before anything was dropped."""
    single: bool
    """There is one image, in one sample."""

    def of(self, x: Tensor) -> Tensor:
        """[B, T, ...] at the tokens: [R, V, ...]."""
        return rows_at(x, self.places) if self.single else x[self.sample[:, None], self.places]

    def flat(self, length: int) -> Tensor:
        """The places in the flattened batch [B * T], T = `length`."""
        return self.places if self.single else self.sample[:, None] * length + self.places


def image_rows(images: Tensor, sizes: list[list[int]]) -> ImageRows:
    """Rows of `images` [B, T] (image of its sample, -1 none); of each sample, `sizes` of all images it once had."""
    if len(sizes) == len(sizes[0]) == 1:
        # The common case has nothing to tell apart.
        places = (images[0] >= 0).nonzero().T
        valid = torch.ones(places.shape, dtype=torch.bool, device=places.device)
        return ImageRows(places.new_zeros(1), places, valid, [places.shape[1]], sizes[0], True)
    member = images[:, None] == torch.arange(len(sizes[0]), device=images.device)[:, None]
    present = member.sum(dim=2)
    sample, image = present.nonzero(as_tuple=True)
    count = present[sample, image]
    counts = count.tolist()
    places = member[sample, image].int().argsort(dim=1, descending=True, stable=True)[:, : max(counts)]
    valid = torch.arange(max(counts), device=images.device) < count[:, None]
    once = [sizes[s][i] for s, i in zip(sample.tolist(), image.tolist(), strict=True)]
    return ImageRows(sample, places, valid, counts, once, False)
