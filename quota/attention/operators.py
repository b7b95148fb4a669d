"""What runs besides the linears of a quantised model: the cache, attention, norms and activations.

One function, so that a model is the same whether it was compressed here, loaded, or made to be timed.
"""

from __future__ import annotations

from transformers import PreTrainedModel

from quota.attention.hook import attach_cache
from quota.attention.tower import attach_tower
from quota.quantization.rowwise import attach_rows
from quota.scheme import QuantizationScheme


def attach_operators(model: PreTrainedModel, scheme: QuantizationScheme) -> None:
    """Run `model`, whose linears are quantised under `scheme`, by operators from here on.

    A scheme of 16 bits quantises the cache alone, and leaves everything else as it is.
    """
    attach_cache(model, scheme)
    if scheme.weight_bits < 16:
        attach_rows(model)
        attach_tower(model)
