"""What a forward pass tells a scorer about the visual tokens at one decoder layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Signals:
    """The visual tokens that enter one candidate layer, padded to the longest sample of the batch.

    A signal that was not measured is None: without attention weights there is no `inter` or `intra`, without
    quantised activations no `risk`. A scorer that needs it raises QuotaError.
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
