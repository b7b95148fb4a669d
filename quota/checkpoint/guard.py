"""What a compressed model says of uses that it is not made for, in one line instead of nonsense or a deep traceback.

backward()                   its layers multiply integers, through which no gradient comes
float64                      its operators take the types that models are run in
an empty prompt              there is nothing to attend to
pickle, torch.save(model)    what backends have prepared belongs to this process; copy.deepcopy is all right
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers import PreTrainedModel

from quota.errors import QuotaError


def guard(model: PreTrainedModel) -> None:
    """Let `model` say so, from now on."""
    if not hasattr(model, "quota_guard"):
        watch: Any = _Guard()
        model.register_forward_pre_hook(watch.before, with_kwargs=True)
        model.register_forward_hook(watch.after)
        setattr(model, "quota_guard", watch)  # noqa: B010 (the class knows no such attribute)


class _Guard:
    """Hooks of one model, without a state."""

    def before(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if model.dtype == torch.float64:
            raise QuotaError("a compressed model does not run in float64; use model.to(torch.float32) or bfloat16")
        tokens = kwargs.get("input_ids", args[0] if args else None)
        if isinstance(tokens, Tensor) and tokens.numel() == 0:
            raise QuotaError("input_ids hold no token; give a prompt")

    def after(self, model: Any, args: tuple[Any, ...], output: Any) -> Any:
        if not torch.is_grad_enabled():
            return None
        if isinstance(output, tuple):
            return tuple(map(_without_gradient, output))
        for name in ("loss", "logits"):
            if getattr(output, name, None) is not None:
                setattr(output, name, _without_gradient(getattr(output, name)))
        return None

    def __deepcopy__(self, memo: dict[int, Any]) -> _Guard:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise QuotaError("a compressed model cannot be pickled; use quota.save_pretrained and from_pretrained")


def _without_gradient(value: Any) -> Any:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    # Quantised layers give what needs no gradient; then backward would fail, but not say why.
    return _NoGradient.apply(value if value.requires_grad else value.detach().requires_grad_())


class _NoGradient(torch.autograd.Function):
    """The identity, with an explanation for a gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> NoReturn:
        raise QuotaError("a compressed model has no gradients; train the original one and compress it again")
