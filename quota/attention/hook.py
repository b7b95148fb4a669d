"""Puts quantised layers into the cache objects that pass through a model's decoder.

That happens in a hook, so `generate` and plain calls, with `use_cache` or without, all attend to quantised keys and
values.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from quota.attention.cache import QuantizedLayer, adopt
from quota.attention.function import deploy
from quota.attention.masks import check_implementation
from quota.models import family
from quota.scheme import QuantizationScheme


class CacheHook:
    """Puts `scheme`'s layers into every cache that enters a model's decoder, until `detach`."""

    def __init__(self, model: PreTrainedModel, scheme: QuantizationScheme | None) -> None:
        self.model: Any = model
        self.scheme = scheme
        self._handles: list[RemovableHandle] = []
        self._borrowed = False
        self._causal = True
        self._windows: list[int | None] = []
        self._cache: Any = None
        self._deployed = ExitStack()

    def attach(self) -> None:
        """Take effect, in place of a hook attached earlier."""
        if isinstance(earlier := getattr(self.model, "quota_cache", None), CacheHook):
            earlier.detach()
        parts = family(self.model)
        decoder, self._causal = parts.text_model, parts.causal
        self._windows = [parts.window(layer) for layer in range(len(parts.decoder_layers))]
        self._handles = [
            # First of all hooks: the Pruner looks for these layers.
            decoder.register_forward_pre_hook(self._before, with_kwargs=True, prepend=True),
            decoder.register_forward_hook(self._after, always_call=True),
        ]
        self.model.quota_cache = self

    def detach(self) -> None:
        """Leave the model as it was."""
        self._deployed.close()
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if getattr(self.model, "quota_cache", None) is self:
            del self.model.quota_cache

    def _before(self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        # A pass that was interrupted may not have come to its end.
        self._deployed.close()
        if not self._causal:
            check_implementation(decoder.config)
        cache, use_cache = kwargs.get("past_key_values"), kwargs.get("use_cache")
        # Without use_cache a new cache serves this one pass, and must not be taken for a past.
        self._borrowed = cache is None and not (decoder.config.use_cache if use_cache is None else use_cache)
        if cache is None:
            cache = DynamicCache(config=decoder.config)
        adopt(cache, decoder.layers, self.scheme, self._windows)
        self._cache = cache
        if isinstance(cache.layers[0], QuantizedLayer) and _may_deploy(decoder, kwargs, self._causal):
            self._deployed.enter_context(deploy(decoder.config, self._causal))
        return args, kwargs | {"past_key_values": cache}

    def _after(self, decoder: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._deployed.close()
        cache, self._cache = self._cache, None
        if output is None or cache is None:
            return
        for layer in cache.layers:
            layer.forget()
        if self._borrowed:
            output.past_key_values = None


def _may_deploy(decoder: Any, kwargs: dict[str, Any], causal: bool) -> bool:
    """Whether this pass has a mask that quota's attention can read, and no wish to see attention weights."""
    mask, weights = kwargs.get("attention_mask"), kwargs.get("output_attentions")
    if weights if weights is not None else decoder.config.output_attentions:
        return False
    return not causal or mask is None or mask.ndim == 2


def attach_cache(model: PreTrainedModel, scheme: QuantizationScheme | None) -> CacheHook:
    """Make every forward pass of `model` use a cache under `scheme`; undo with `.detach()`.

    From then on a static, offloaded or foreign cache raises QuotaError when it is used.
    """
    hook = CacheHook(model, scheme)
    hook.attach()
    return hook
