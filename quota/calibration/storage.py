"""Where the blocks of a model are while calibration goes through them: in memory, or elsewhere but for one.

Calibration (quota/calibration/sweep.py) needs one block at a time, and says which. quota/checkpoint/on_disk.py reads
blocks when they are needed, and keeps finished ones in files.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn


class Storage:
    """A model as `from_pretrained` loads it: all its blocks are in memory, and nothing need be done."""

    def fetch(self, block: nn.Module) -> None:
        """The original weights of this block are needed."""

    def finished(self, block: nn.Module) -> bool:
        """Whether `restore` will find this block."""
        return False

    def restore(self, block: nn.Module, linears: Mapping[str, nn.Linear]) -> bool:
        """Replace `linears`, those of the block, by quantised ones of an earlier run; whether there are any."""
        return False

    def keep(self, block: nn.Module) -> None:
        """This block is finished."""

    def release(self, block: nn.Module) -> None:
        """This block is not needed any more."""

    def assemble(self) -> None:
        """The finished model is to run."""
