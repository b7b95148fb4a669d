"""Puts quantised layers into the cache objects that pass through a model's decoder.

That happens in a hook, so `generate` and plain calls, with `use_cache` or without, all attend to quantised keys and
values.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from quota.attention.cache import QuantizedLayer, adopt, say_turns
from quota.attention.function import deploy
from quota.attention.keys import key_transforms
from quota.attention.masks import check_implementation
from quota.attention.per_thread import PerThread
from quota.errors import QuotaError
from quota.models import family
from quota.scheme import QuantizationScheme


@dataclass(frozen=True)
class _Pass:
    """One pass through the decoder."""

    cache: Any
    """A DynamicCache of our layers."""
    borrowed: bool
    """The cache is for this one pass."""
    deployed: ExitStack
    """Closed when attention is no longer the backend's."""


class CacheHook:
    """Puts `scheme`'s layers into every cache that enters a model's decoder, until `detach`.

    As a context manager it detaches behind the block.
    """

    _pass = PerThread[_Pass]()

    def __init__(self, model: PreTrainedModel, scheme: QuantizationScheme | None) -> None:
        self.model: Any = model
        self.scheme = scheme
        self._handles: list[RemovableHandle] = []
        self._causal = True
        self._windows: list[int | None] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def attach(self) -> Self:
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
        if any(transform is not None and transform.turning is not None for transform in key_transforms(decoder.layers)):
            self._handles.append(decoder.rotary_emb.register_forward_hook(self._turned))
        self.model.quota_cache = self
        return self

    def detach(self) -> None:
        """Leave the model as it was. No pass may be in flight."""
        self._end()
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if getattr(self.model, "quota_cache", None) is self:
            del self.model.quota_cache

    def _before(self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        # A pass that was interrupted may not have come to its end.
        self._end()
        if not self._causal:
            check_implementation(decoder.config)
        cache, use_cache = kwargs.get("past_key_values"), kwargs.get("use_cache")
        # Without use_cache a new cache serves this one pass, and must not be taken for a past.
        borrowed = cache is None and not (decoder.config.use_cache if use_cache is None else use_cache)
        if borrowed:
            _refuse_packed(kwargs)
        if cache is None:
            cache = DynamicCache(config=decoder.config)
        adopt(cache, decoder.layers, self.scheme, self._windows)
        self._pass = _Pass(cache, borrowed, ExitStack())
        if isinstance(cache.layers[0], QuantizedLayer) and _may_deploy(decoder, kwargs, self._causal):
            self._pass.deployed.enter_context(deploy(decoder.config, self._causal))
        return args, kwargs | {"past_key_values": cache}

    def _turned(self, rotary: nn.Module, args: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        if self._pass is not None:
            say_turns(self._pass.cache, len(args[0]), *output)

    def _after(self, decoder: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        ended = self._end()
        if output is None or ended is None:
            return
        for layer in ended.cache.layers:
            layer.forget()
        if ended.borrowed:
            output.past_key_values = None

    def _end(self) -> _Pass | None:
        """Nothing of this thread's pass, which is returned, stays."""
        ended, self._pass = self._pass, None
        if ended is not None:
            ended.deployed.close()
        return ended


def _refuse_packed(kwargs: dict[str, Any]) -> None:
    """QuotaError for several sequences in a row, which transformers tells apart by positions where no cache is."""
    positions = kwargs.get("position_ids")
    if kwargs.get("attention_mask") is not None or positions is None or positions.ndim != 2:
        return
    if bool((positions.diff(dim=-1) != 1).any()):
        raise QuotaError("packed sequences would attend to each other through the cache; pass them as a batch")


def _may_deploy(decoder: Any, kwargs: dict[str, Any], causal: bool) -> bool:
    """Whether this pass has a mask that quota's attention can read, and no wish to see attention weights."""
    mask, weights = kwargs.get("attention_mask"), kwargs.get("output_attentions")
    if weights if weights is not None else decoder.config.output_attentions:
        return False
    return not causal or mask is None or mask.ndim == 2


def attach_cache(model: PreTrainedModel, scheme: QuantizationScheme | None) -> CacheHook:
    """Make every forward pass of `model` use a cache under `scheme`, until `.detach()` or to the end of a `with` block.

    A static, offloaded or foreign cache then raises QuotaError when it is used.
    """
    return CacheHook(model, scheme).attach()
