"""Several processes that calibrate one model together, as torchrun starts them: `torchrun -m quota compress ...`.

Each takes every N-th sample, and one operation serves everything that calibration adds up or lists over samples: the
sum over all ranks, in float64 (gloo, on CPUs).

    total     a sum over samples: Hessians, energies, moments of heads and keys
    gather    a number for each sample, in the order of samples: a sum, too, with zeros in the places of other ranks
    told      what the first rank knows: a sum with zeros from all others

What is added has 24 bits and a float64 has room for 53, so the order in which samples are added changes no bit of the
float32 that is left of a sum, and any number of ranks makes the same files. Samples run whole on one rank, and every
rank rounds all weights itself: nothing else is sent.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor

from quota.errors import QuotaError, SaidElsewhere

Item = TypeVar("Item")

LONGEST_WAIT = timedelta(hours=2)
"""For a rank that neither answers nor ends; one that has ended is noticed at once."""
_SPOKEN = "quota_spoken"


class Ranks:
    """One of several processes, each of which makes the same calls in the same order."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self.sent = 0
        """Bytes that this rank has given into sums."""

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes files, and speaks."""
        return self.rank == 0

    def share(self, samples: Sequence[Item]) -> Sequence[Item]:
        """Those of all samples that this rank runs. Raises QuotaError where some rank would have none."""
        if len(samples) < self.size > 1:
            raise QuotaError(f"{self.size} ranks need as many samples, got {len(samples)}; start fewer ranks")
        return samples[self.rank :: self.size]

    def total(self, own: Tensor) -> Tensor:
        """The sum over ranks of a float64 tensor, in its memory if it is on the CPU. QuotaError if a rank has ended."""
        if self.size == 1:
            return own
        import torch.distributed as dist

        summed = own.cpu().contiguous()
        self.sent += summed.nbytes
        try:
            dist.all_reduce(summed)
        except RuntimeError as error:
            raise QuotaError("another rank has ended; once all have, the same command goes on") from error
        return summed.to(own.device)

    def gather(self, own: Sequence[float]) -> list[float]:
        """The numbers of all samples in their order, given those of this rank's share."""
        every = torch.zeros(int(self.total(torch.tensor(float(len(own)), dtype=torch.float64))), dtype=torch.float64)
        every[self.rank :: self.size] = torch.tensor(own, dtype=torch.float64)
        return self.total(every).tolist()

    def told(self, count: int, known: Callable[[], Sequence[float]]) -> list[float]:
        """The `count` numbers that `known` gives on the first rank; it is called there alone."""
        numbers = torch.tensor(known(), dtype=torch.float64) if self.first else torch.zeros(count, dtype=torch.float64)
        return self.total(numbers).tolist()

    def wait(self) -> None:
        """Until all ranks have come here."""
        self.told(1, lambda: [0.0])


ALONE = Ranks()


def launched() -> int:
    """How many processes torchrun has started, this one among them; 1 without torchrun."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


@contextmanager
def joined() -> Iterator[Ranks]:
    """This process among those that torchrun has started, or `ALONE`, while the block runs.

    Where a block ends in an error, so do those of all other ranks; only the first of these errors is to be said, and
    the others become SaidElsewhere.
    """
    if launched() == 1:
        yield Ranks()
        return
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=LONGEST_WAIT)
    store: Any = dist.distributed_c10d._get_default_store()
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    except BaseException as error:
        # Before the connections close: by that the others notice.
        if _said(store):
            raise SaidElsewhere from error
        raise
    finally:
        dist.destroy_process_group()


def _said(store: Any) -> bool:
    """Whether another rank has an error to say; from now on this one has."""
    try:
        return store.add(_SPOKEN, 1) > 1
    except RuntimeError:
        # Who keeps the store has ended, and nobody else can know.
        return False
