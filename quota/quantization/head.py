"""lm_head in few bits: the last linear of a model, all of which is read for every token of an answer.

Its weights are rounded to nearest and its inputs have 8 bits, as logits feel every error directly (docs/quantiser
has the figures). Where a model ties it to the embedding, the embedding stays as it is, and the tie is undone.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from quota.errors import QuotaError
from quota.quantization.linear import W4A4Linear
from quota.scheme import QuantizationScheme

ACTIVATION_BITS = 8


def head_scheme(scheme: QuantizationScheme) -> QuantizationScheme:
    """How lm_head is quantised under `scheme`."""
    bits = {"weight_bits": scheme.head_bits, "activation_bits": ACTIVATION_BITS}
    return scheme.model_copy(update=bits | {"weight_rounding": "rtn"})


def quantize_head(model: Any, scheme: QuantizationScheme) -> None:
    """Replace lm_head of `model` in place, unless `scheme` leaves it in 16 bits or it is replaced already."""
    head = model.get_output_embeddings()
    if scheme.head_bits < 16 and not isinstance(head, W4A4Linear):
        _replace(model, _linear(head), W4A4Linear.from_linear(head, head_scheme(scheme)))


def empty_head(model: Any, scheme: QuantizationScheme) -> None:
    """Put an empty layer in the place of lm_head, for loaders to fill, unless `scheme` leaves it in 16 bits."""
    if scheme.head_bits < 16:
        head = _linear(model.get_output_embeddings())
        _replace(model, head, W4A4Linear.empty_like(head, head_scheme(scheme), head.weight.device))


def _linear(head: Any) -> nn.Linear:
    if not isinstance(head, nn.Linear):
        raise QuotaError(f"the model's head is {type(head).__name__}, no linear layer; use head_bits=16")
    return head


def _replace(model: Any, head: nn.Linear, layer: W4A4Linear) -> None:
    [name] = [name for name, module in model.named_modules() if module is head]
    model.set_submodule(name, layer)
    # What was tied is two tensors now.
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False
    model.all_tied_weights_keys = {}
