"""Where the blocks of a model are while calibration goes through them: in memory, or elsewhere but for one.

Calibration (quota/calibration/sweep.py) needs one block at a time. It says which through four calls,

    fetch      the original weights of this block are needed
    restore    was it quantised by an earlier, interrupted run? then put that result in place
    keep       this block is finished
    release    this block is not needed any more

and after the last block, if the finished model is to run, by `assemble`; `finished` tells beforehand what `restore`
will find. They do nothing for a model in memory; quota/checkpoint/on_disk.py is the other kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import nn


class InMemory:
    """A model as `from_pretrained` loads it."""

    def fetch(self, block: nn.Module) -> None: ...

    def finished(self, block: nn.Module) -> bool:
        return False

    def restore(self, block: nn.Module, linears: Mapping[str, nn.Linear]) -> bool:
        return False

    def keep(self, block: nn.Module) -> None: ...

    def release(self, block: nn.Module) -> None: ...

    def assemble(self) -> None: ...


class Storage(Protocol):
    """What calibration asks of either kind."""

    def fetch(self, block: nn.Module) -> None: ...

    def finished(self, block: nn.Module) -> bool: ...

    def restore(self, block: nn.Module, linears: Mapping[str, nn.Linear]) -> bool: ...

    def keep(self, block: nn.Module) -> None: ...

    def release(self, block: nn.Module) -> None: ...

    def assemble(self) -> None: ...
