"""How much a token counts when the weights of the decoder are rounded: pictures are long, questions are short.

With one weight for all tokens the hundreds of visual ones of a prompt decide alone which errors are small, and yet the
answer is read from the text. A share s of the whole weight for visual tokens divides it over a calibration set of V
visual and T text tokens as

    w_visual = s (V + T) / V        w_text = (1 - s) (V + T) / T

so that s = V / (V + T) is the same weight for all. (MBQ, arXiv 2412.19509, weighs the two in the loss by how much it
reacts to them.) Samples are never padded here, so padding has no weight.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from quota.errors import QuotaError


def check_share(share: float | None) -> None:
    """QuotaError unless `share` is None or in (0, 1)."""
    if share is not None and not 0 < share < 1:
        raise QuotaError(f"visual_share must be above 0 and below 1, got {share}; leave it out for equal weights")


def token_weights(visual: Sequence[Tensor], share: float | None) -> list[Tensor] | None:
    """Weights float32 [T] for each sample's mask of visual tokens [1, T]; None if all tokens count alike.

    They do without a share, and where only one of the two kinds is left.
    """
    total, seen = sum(mask.numel() for mask in visual), sum(int(mask.sum()) for mask in visual)
    if share is None or seen in (0, total):
        return None
    of_visual, of_text = share * total / seen, (1 - share) * total / (total - seen)
    return [torch.where(mask[0], of_visual, of_text).float() for mask in visual]
