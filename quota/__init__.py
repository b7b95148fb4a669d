"""QUOTA: vision-language models compressed to 4-bit weights, activations and KV cache, with fewer visual tokens.

    import quota                                                     # registers the checkpoint loader, nothing else
    result = quota.compress(model, processor, samples, keep=0.30)    # W4A4KV4 and a recipe, in place
    quota.save_pretrained(model, processor, "out/")
    model = AutoModelForImageTextToText.from_pretrained("out/")      # plain transformers from here on
    with quota.record(model) as trace:                               # trace.kept[layer]: indices [batch, K]
        model.generate(...)

`quota compress` and its companions do the same on the command line.
"""

from __future__ import annotations

from quota.allocation import keep_count, keep_ratios
from quota.checkpoint import save_pretrained
from quota.compress import compress
from quota.errors import QuotaError
from quota.loader import register
from quota.pruning import record
from quota.recipe import PruningRecipe
from quota.scheme import QuantizationScheme
from quota.version import __version__

__all__ = [
    "PruningRecipe",
    "QuantizationScheme",
    "QuotaError",
    "__version__",
    "compress",
    "keep_count",
    "keep_ratios",
    "record",
    "save_pretrained",
]

register()
