"""What a forward pass tells a scorer about the visual tokens at one decoder layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Signals:
    """The visual tokens that enter one candidate layer, one row an image, padded to the longest of the batch.

    A scorer names those that it reads in its `SIGNALS`; the others are not measured and None. So are those that do not
    exist: without quantised activations there is no `risk`, and before the first decoder layer (candidate layer -1)
    no attention. A scorer that needs one raises QuotaError.
    """

    hidden: Tensor
    """[B, V, D] the layer's input v_i at the visual tokens."""
    valid: Tensor
    """[B, V] bool, False at padding; the other fields hold anything there."""
    inter: Tensor | None = None
    """[B, V] attention received from the text tokens, summed over them and averaged over heads."""
    intra: Tensor | None = None
    """[B, V] attention received from the visual tokens, summed over them and averaged over heads."""
    risk: Tensor | None = None
    """[B, V] ||Q(v_i) - v_i||_2, how far the deployed activation quantiser moves the token."""
    last: Tensor | None = None
    """[B, V] attention received from the last text token, averaged over heads."""
    keys: Tensor | None = None
    """[B, V, G * D] the keys of all G heads, after the rotary embedding."""
    text: Tensor | None = None
    """[B, N, D] the layer's input at the text tokens of the row's sample."""
    text_valid: Tensor | None = None
    """[B, N] bool, False at padding of `text`; measured with it."""
    tower: Tensor | None = None
    """[B, V] attention of the vision tower's [CLS] token (without one: of all its patches), averaged over heads."""
    budget: Tensor | None = None
    """[B] int64, how many tokens of the row go on: for scorers that choose one by one, or another few than many."""
