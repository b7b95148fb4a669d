"""The two ends of a decoder in few bits: the embedding, and lm_head, all of which is read for every token of an answer.

Weights are rounded to nearest, and the head's inputs have 8 bits, as logits feel every error directly
(`quota ablate head` compares them). Where a model ties its head to the embedding and both have 8 bits, they are the
same integers, stored once (quota/quantization/embedding.py); with other bits the tie is undone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from quota.errors import QuotaError
from quota.quantization.embedding import QuantizedEmbedding, TiedHead
from quota.quantization.linear import W4A4Linear
from quota.scheme import QuantizationScheme

ACTIVATION_BITS = 8


def end_scheme(scheme: QuantizationScheme, bits: int) -> QuantizationScheme:
    """How an end with weights of `bits` bits is quantised under `scheme`."""
    changes = {"weight_bits": bits, "activation_bits": ACTIVATION_BITS, "weight_rounding": "rtn"}
    return scheme.model_copy(update=changes)


def quantize_ends(model: Any, scheme: QuantizationScheme) -> None:
    """Replace embedding and lm_head of a full-precision `model` in place, each unless `scheme` leaves it in 16 bits.

    QuotaError for an embedding that does more than look up, and for a head that is no linear layer.
    """
    head = model.get_output_embeddings()
    tied = getattr(head, "weight", None) is model.get_input_embeddings().weight
    _replace(model, scheme, tied, QuantizedEmbedding.from_embedding, W4A4Linear.from_linear)


def empty_ends(model: Any, scheme: QuantizationScheme, tied: bool) -> None:
    """Put empty layers in their places, for loaders to fill; `tied` says whether the head is the embedding's.

    Errors as `quantize_ends`.
    """

    def empty(head: nn.Linear, scheme: QuantizationScheme) -> W4A4Linear:
        return W4A4Linear.empty_like(head, scheme, head.weight.device)

    _replace(model, scheme, tied, QuantizedEmbedding.empty_for, empty)


def has_tied_head(model: Any) -> bool:
    """Whether lm_head of a quantised `model` has no integers of its own."""
    return isinstance(model.get_output_embeddings(), TiedHead)


def _replace(
    model: Any,
    scheme: QuantizationScheme,
    tied: bool,
    embed: Callable[[nn.Embedding, QuantizationScheme], QuantizedEmbedding],
    project: Callable[[nn.Linear, QuantizationScheme], W4A4Linear],
) -> None:
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if scheme.head_bits < 16 and not isinstance(head, nn.Linear):
        raise QuotaError(f"the model's head is {type(head).__name__}, no linear layer; use head_bits=16")
    new: dict[nn.Module, nn.Module] = {}
    lookup = None
    if scheme.embedding_bits < 16:
        new[embedding] = lookup = embed(embedding, end_scheme(scheme, scheme.embedding_bits))
    if scheme.head_bits < 16:
        if tied and lookup is not None and scheme.head_bits == scheme.embedding_bits:
            new[head] = TiedHead(lookup)
        else:
            new[head] = project(head, end_scheme(scheme, scheme.head_bits))
    for old, layer in new.items():
        [name] = [name for name, module in model.named_modules() if module is old]
        model.set_submodule(name, layer)
    if new:
        # Parameters that were tied are none any more.
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False
        model.all_tied_weights_keys = {}
