"""The Pruner: runs a recipe inside a model's own forward pass, by hooks on its modules.

At a candidate layer l all tokens present go through the layer. Its attention (measured while it runs), its input and
the deployed activation quantiser give the metrics of every visual token; the recipe's scorer ranks them (equations
6-9); of each image the best K_l (equation 5) go on. The layer's output and its KV cache are cut to the text and those
tokens, so later layers, and decoding, never see the others. Positions stay what they were, text is never dropped,
decoding steps are left alone, and the result comes back at full length, zero where a token was dropped.

Images are ranked one by one, each among its own tokens: what is kept of one depends neither on the size of another nor
on the batch.

    before the base model      which positions hold which image
    before the text model      open the pass
    before each layer          masks and rotary tables of the tokens present (from the first candidate layer on)
    after a candidate layer    score, select, cut; for candidate layer -1, before the first layer
    after the text model       restore the full length
    after the base model       close the pass

What a pass knows is its thread's own, so one model serves several threads at once, each with another recipe if need be
(`running`); attaching and detaching are for a time when no pass is in flight.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Self

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from quota.attention.function import observe
from quota.attention.hook import CacheHook, attach_cache
from quota.attention.observation import Observation
from quota.attention.per_thread import PerThread
from quota.attention.slots import SlotLayer
from quota.errors import QuotaError
from quota.models import family, fingerprint
from quota.models.images import encode
from quota.pruning.deepstack import DeepStack
from quota.pruning.passes import Pass, by_name
from quota.pruning.presence import Presence, images_of
from quota.pruning.ranking import Choice, rank
from quota.pruning.recipe import PruningRecipe
from quota.pruning.scorers import scorer
from quota.pruning.tower import TowerAttention
from quota.pruning.trace import Trace
from quota.scheme import QuantizationScheme


class Pruner:
    """Drops visual tokens in the prefill of `model`, as `recipe` says, from `attach` to `detach` or in a `with`."""

    traces = PerThread[tuple[Trace, ...]]()
    """Of every `record` that this thread is in."""
    _pass = PerThread[Pass]()
    _instead = PerThread[PruningRecipe]()

    def __init__(
        self,
        model: PreTrainedModel,
        recipe: PruningRecipe,
        scheme: QuantizationScheme | None = None,
        layers: Iterable[int] = (),
    ) -> None:
        """`scheme` is the one that the model is deployed under; None is full precision.

        `layers` are those that recipes of `running` may cut after, besides those of `recipe`.

        Raises QuotaError for an unsupported architecture, and for a recipe that was made for another model or
        under another scheme.
        """
        self.model: Any = model
        self.family = family(model)
        self.recipe = recipe
        self.scheme = scheme
        recipe.verify(model_fingerprint=fingerprint(model), scheme=scheme)
        recipe.tokens_per_layer(recipe.reference_tokens, len(self.family.decoder_layers))
        self._layers = sorted({*recipe.layers, *layers})
        self._windows = [self.family.window(layer) for layer in range(len(self.family.decoder_layers))]
        self._handles: list[RemovableHandle] = []
        self._own_cache: CacheHook | None = None
        self._signals = frozenset(scorer(recipe.scorer).SIGNALS)
        self._tower: TowerAttention | None = None

    def __enter__(self) -> Self:
        return self.attach()

    def __exit__(self, *_: object) -> None:
        self.detach()

    def attach(self) -> Self:
        """Take effect, with a KV cache under `scheme` unless the model has one. QuotaError if it is pruned already."""
        model, layers = self.model, self.family.decoder_layers
        if is_pruned(model):
            raise QuotaError("this model has a Pruner already; detach that one first")
        cache = getattr(model, "quota_cache", None)
        if cache is None:
            self._own_cache = attach_cache(model, self.scheme)
        elif cache.scheme != self.scheme:
            raise QuotaError("the model's KV cache is under another scheme than the recipe; attach both under one")
        before, after = {"with_kwargs": True}, {"prepend": True, "always_call": True}
        base, decoder = self.family.base, self.family.text_model
        self._handles = [
            base.register_forward_pre_hook(self._before_base, **before),
            base.register_forward_hook(self._after_base, **after),
            decoder.register_forward_pre_hook(self._before_decoder, **before),
            decoder.register_forward_hook(self._after_decoder, **after),
        ]
        if "tower" in self._signals:
            self._tower = TowerAttention(self.family)
            self._handles += self._tower.handles
        for index in range(max(self._layers[0], 0), len(layers)):
            hook = partial(self._before_layer, index)
            self._handles.append(layers[index].register_forward_pre_hook(hook, **before))
        # The hook that is registered last comes first: features are added to what a cut has left.
        for index in range(self.family.deepstack):
            hook = partial(self._add_features, index)
            self._handles.append(layers[index].register_forward_hook(hook, **after))
        for index in [index for index in self._layers if index >= 0]:
            hook = partial(self._after_layer, index)
            self._handles.append(layers[index].register_forward_hook(hook, with_kwargs=True, **after))
        model.generate = self._generate
        model.quota_pruner = self
        return self

    def detach(self) -> None:
        """Leave the model as it was before `attach`."""
        if getattr(self.model, "quota_pruner", None) is not self:
            return
        self._close()
        for handle in self._handles:
            handle.remove()
        if self._own_cache is not None:
            self._own_cache.detach()
        self._handles, self._own_cache = [], None
        del self.model.generate, self.model.quota_pruner

    @contextmanager
    def running(self, recipe: PruningRecipe) -> Iterator[None]:
        """Inside the block passes of this thread run `recipe`; those of others what they did.

        Raises QuotaError for a recipe of another model, scheme or score, and for one that cuts after other layers than
        the Pruner was made for.
        """
        recipe.verify(model_fingerprint=self.recipe.model_fingerprint, scheme=self.scheme)
        if recipe.scorer != self.recipe.scorer:
            raise QuotaError(f"this Pruner scores tokens by {self.recipe.scorer!r}, the recipe by {recipe.scorer!r}")
        if other := sorted({*recipe.layers} - {*self._layers}):
            raise QuotaError(f"the recipe cuts after layers {other}; make the Pruner with layers={other} to allow that")
        before, self._instead = self._instead, recipe
        try:
            yield
        finally:
            self._instead = before

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        config = kwargs.get("generation_config") or (args[1] if len(args) > 1 else self.model.generation_config)
        # A chunk looks like a turn of its own, whose text is not the question: only here can it be told.
        if kwargs.get("prefill_chunk_size", getattr(config, "prefill_chunk_size", None)) is not None:
            raise QuotaError("token pruning needs the whole prompt in one prefill; leave prefill_chunk_size unset")
        return type(self.model).generate(self.model, *args, **kwargs)

    def _before_base(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        # A pass that was interrupted may not have come to its end.
        self._close()
        given = by_name(module, args, kwargs)
        if given.get("input_ids") is None:
            raise QuotaError("token pruning needs input_ids to know which tokens are visual; pass them, not embeddings")
        if self.family.encodes_first and given.get("mm_encoder_outputs") is None:
            given = encode(module, given)
        self._pass = Pass(given, images_of(self.family, given), self._instead or self.recipe)
        return (), given

    def _after_base(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._close()

    def _before_decoder(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        now = self._pass
        # A text model called on its own has nothing visual to prune.
        if now is None:
            return None
        past = kwargs["past_key_values"].get_seq_length()
        now.presence = Presence.of(self.family, now.given, now.images, kwargs.get("position_ids"), past)
        if now.presence.has_images:
            for trace in self.traces or ():
                trace.begin(now.presence, len(self.family.decoder_layers))
        now.deepstack, kwargs = DeepStack.take(kwargs)
        return args, kwargs

    def _before_layer(
        self, index: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        now = self._pass
        if now is None or now.presence is None:
            return None
        presence, config = now.presence, self.family.text_model.config
        if index == 0 and -1 in now.recipe.layers and presence.has_images:
            args = (self._cut(-1, presence, args[0], None, args[0], None), *args[1:])
        given = presence.arguments(index, args[0], kwargs, config, self._windows[index])
        if index in now.recipe.layers and presence.has_images:
            keys = presence.keys(kwargs["past_key_values"].layers[index])
            now.observation = Observation(presence.text, presence.visual, keys, self._signals)
            now.observing.enter_context(observe(config, now.observation, self.family.causal))
        return args, given

    def _after_layer(
        self, index: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Tensor | None:
        now = self._pass
        if now is None:
            return None
        observation, now.observation = now.observation, None
        now.observing.close()
        # Without an output the layer has failed, and its exception is on its way.
        if output is None or now.presence is None or observation is None:
            return None
        return self._cut(index, now.presence, args[0], observation, output, kwargs["past_key_values"].layers[index])

    def _add_features(self, index: int, layer: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor | None:
        now = self._pass
        if output is None or now is None or now.presence is None or now.deepstack is None:
            return None
        return now.deepstack.add(index, output, now.presence)

    def _cut(
        self,
        index: int,
        presence: Presence,
        hidden: Tensor,
        observation: Observation | None,
        output: Tensor,
        slots: SlotLayer | None,
    ) -> Tensor:
        """Choose among the tokens that entered layer `index` as `hidden`; its `output` at those that go on."""
        choice = self._rank(index, presence, hidden, observation)
        for trace in self.traces or ():
            trace.add(index, presence, choice)
        # keep = 1.0 changes nothing, not even where padding stands.
        if choice.all_kept:
            return output
        return presence.cut(index, choice.cut, output, slots)

    def _rank(self, index: int, presence: Presence, hidden: Tensor, observation: Observation | None) -> Choice:
        """Which places go on from layer `index`."""
        tower = None if self._tower is None else self._tower.received(presence.all_images)
        assert self._pass is not None
        return rank(presence, hidden, observation, tower, self._pass.recipe, index, self.scheme)

    def _after_decoder(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        now = self._pass
        if output is None or now is None or now.presence is None or now.presence.whole:
            return
        presence = now.presence
        layers = len(self.family.decoder_layers)
        output.last_hidden_state = presence.restore(output.last_hidden_state, layers)
        if output.get("hidden_states") is not None:
            output.hidden_states = tuple(
                None if hidden is None else presence.restore(hidden, layer)
                for layer, hidden in enumerate(output.hidden_states)
            )

    def _close(self) -> None:
        """Nothing of this thread's pass stays."""
        if (ended := self._pass) is not None:
            ended.observing.close()
            self._pass = None


def is_pruned(model: Any) -> bool:
    """Whether a Pruner is attached to this model."""
    return isinstance(getattr(model, "quota_pruner", None), Pruner)


@contextmanager
def record(model: Any) -> Iterator[Trace]:
    """What the model's Pruner does inside the block: `trace.kept[layer]` [batch, K], `scores`, `tokens_per_layer`.

    Of the passes of this thread, whatever others ask the model. A thread that is to be seen too takes this one's
    context with it: `Thread(target=contextvars.copy_context().run, args=(model.generate,), kwargs=...)`.

    Raises QuotaError for a model that is not pruned.
    """
    if not is_pruned(model):
        raise QuotaError("this model is not pruned, so there is nothing to record; attach a recipe first")
    trace, pruner = Trace(), model.quota_pruner
    pruner.traces = (*(pruner.traces or ()), trace)
    try:
        yield trace
    finally:
        # By identity: two traces with equal tensors are still two.
        pruner.traces = tuple(other for other in pruner.traces or () if other is not trace)
