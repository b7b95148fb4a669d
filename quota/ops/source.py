"""Whether tensors are still those, with the numbers, that something was made from and may be kept for."""

from __future__ import annotations

from torch import Tensor


class Source:
    """The tensors (None for one that is not there) as they are now.

    Another tensor, other memory and writing are noticed, less what is written through `tensor.data`, and into inference
    tensors, of which torch keeps no count.
    """

    def __init__(self, *tensors: Tensor | None) -> None:
        # An alias keeps the memory, so that no other tensor can come to stand there and look the same.
        self._held = [None if tensor is None else (tensor, tensor.detach()) for tensor in tensors]
        self._states = [_state(tensor) for tensor in tensors]

    def is_still(self, *tensors: Tensor | None) -> bool:
        """Whether nothing about them has changed."""
        return self._states == [_state(tensor) for tensor in tensors]


def _state(tensor: Tensor | None) -> tuple[int, ...]:
    if tensor is None:
        return ()
    return id(tensor), tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version
