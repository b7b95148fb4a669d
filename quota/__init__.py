"""QUOTA: vision-language models compressed to 4-bit weights, activations and KV cache, with fewer visual tokens.

    import quota                                                     # registers the checkpoint loader, nothing else
    result = quota.compress(model, processor, samples, keep=0.30)    # W4A4KV4 and a recipe, in place
    quota.save_pretrained(model, processor, "out/")
    model = AutoModelForImageTextToText.from_pretrained("out/")      # plain transformers from here on
    with quota.record(model) as trace:                               # trace.kept[layer]: indices [batch, K]
        model.generate(...)

`quota compress` and its companions do the same on the command line.

Nothing heavy is imported before it is used: names are looked up at their first use, and the loader is registered when
transformers comes to it, whichever of the two is imported first.
"""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from wrapt import when_imported

from quota.errors import QuotaError
from quota.version import __version__

if TYPE_CHECKING:
    from quota.allocation import keep_count, keep_ratios
    from quota.checkpoint import rebudget, save_pretrained
    from quota.compress import compress
    from quota.pruning import PruningRecipe, record
    from quota.samples import Sample, read_samples
    from quota.scheme import QuantizationScheme

__all__ = [
    "PruningRecipe",
    "QuantizationScheme",
    "QuotaError",
    "Sample",
    "__version__",
    "compress",
    "keep_count",
    "keep_ratios",
    "read_samples",
    "rebudget",
    "record",
    "save_pretrained",
]

_HOMES = {
    "PruningRecipe": "quota.pruning",
    "QuantizationScheme": "quota.scheme",
    "Sample": "quota.samples",
    "compress": "quota.compress",
    "keep_count": "quota.allocation",
    "keep_ratios": "quota.allocation",
    "read_samples": "quota.samples",
    "rebudget": "quota.checkpoint",
    "record": "quota.pruning",
    "save_pretrained": "quota.checkpoint",
}


class _Face(ModuleType):
    """This package: `quota.compress` is the function, also once the module of that name has been imported."""

    def __getattr__(self, name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'quota' has no attribute {name!r}")
        found = getattr(import_module(_HOMES[name]), name)
        setattr(self, name, found)
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        # The import system makes a submodule an attribute of its package.
        if name == "compress" and isinstance(value, ModuleType):
            value = value.compress
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Face


@when_imported("transformers.quantizers.auto")
def _register(auto: Any) -> None:
    """Make `from_pretrained` of transformers load checkpoints of ours; compressed-tensors' stay as they are."""

    def quantizer(*args: Any, **kwargs: Any) -> Any:
        from quota.checkpoint.load import QuotaQuantizer

        return QuotaQuantizer(*args, **kwargs)

    auto.AUTO_QUANTIZER_MAPPING["compressed-tensors"] = quantizer


@when_imported("transformers.modeling_utils")
def _guard(modeling: Any) -> None:
    """Refuse a checkpoint of ours whose configuration has lost what makes transformers ask the loader at all."""
    inner = modeling.get_hf_quantizer

    def get_hf_quantizer(config: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(config, "quota", None) is None:
            return inner(config, *args, **kwargs)
        from quota.checkpoint.stored import check_config

        check_config(config)
        with warnings.catch_warnings():
            # Advice for kernels of others: to ours, groups of weights and of activations need not be alike.
            warnings.filterwarnings("ignore", "Using GROUP strategy")
            return inner(config, *args, **kwargs)

    modeling.get_hf_quantizer = get_hf_quantizer
