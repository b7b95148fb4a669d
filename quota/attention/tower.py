"""Attention of a quantised vision tower by the backend, where that is faster than torch's sdpa.

Each block switches quota's attention on for itself (quota/attention/function.py), if its linears are quantised, the
user has chosen sdpa, and the backend leads in the type of what goes in. What a block asks for that the operator does
not do stays sdpa's, and the record of backends says so.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Self

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedConfig, PreTrainedModel

from quota import ops
from quota.attention.function import whole
from quota.attention.per_thread import PerThread
from quota.attention.state import chosen
from quota.models import family
from quota.quantization.linear import W4A4Linear


class TowerHook:
    """Around every quantised block of a model's tower, until `detach`."""

    _inside = PerThread[ExitStack]()
    """Closed behind the block that this thread is in."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model: Any = model
        self._handles: list[RemovableHandle] = []

    def attach(self) -> Self:
        """Take effect, in place of a hook attached earlier."""
        if isinstance(earlier := getattr(self.model, "quota_tower", None), TowerHook):
            earlier.detach()
        for block in family(self.model).tower_blocks:
            if any(isinstance(part, W4A4Linear) for part in block.modules()):
                self._handles += [
                    block.register_forward_pre_hook(self._before, with_kwargs=True),
                    block.register_forward_hook(self._after, always_call=True),
                ]
        self.model.quota_tower = self
        return self

    def detach(self) -> None:
        """Leave the model as it was. No pass may be in flight."""
        self._end()
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if getattr(self.model, "quota_tower", None) is self:
            del self.model.quota_tower

    def _before(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._end()
        hidden = args[0] if args else kwargs.get("hidden_states")
        config = _config(block)
        if not isinstance(hidden, Tensor) or config is None or chosen(config) != "sdpa":
            return
        if ops.leads_attention(hidden.device, hidden.dtype):
            self._inside = ExitStack()
            self._inside.enter_context(whole(config))

    def _after(self, *_: Any) -> None:
        self._end()

    def _end(self) -> None:
        inside, self._inside = self._inside, None
        if inside is not None:
            inside.close()


def attach_tower(model: PreTrainedModel) -> TowerHook:
    """Let quantised tower blocks of `model` attend by the backend, until `.detach()`."""
    return TowerHook(model).attach()


def _config(block: nn.Module) -> PreTrainedConfig | None:
    """The configuration in which attention looks up its implementation."""
    configs = (getattr(part, "config", None) for part in block.modules())
    return next((config for config in configs if isinstance(config, PreTrainedConfig)), None)
