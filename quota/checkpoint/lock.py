"""One run at a time, by a lock that dies with its process.

A file that is merely there would outlive a run that was killed. This one is locked by the operating system, which lets
go of it when the process ends, however that comes; a file left behind by a killed run locks nothing.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO

from quota.errors import QuotaError
from quota.files import cannot_write


def writing(target: Path) -> AbstractContextManager[None]:
    """The lock of whoever works on the checkpoint folder `target`, to be held in a `with`; errors as `held`."""
    lock = target.with_name(f".{target.name}.compressing.lock")
    return held(lock, f"another run is writing {target}; wait for it, or give another folder")


@contextmanager
def held(file: Path, taken: str) -> Iterator[None]:
    """Hold the lock `file`, which is made with its folder and removed again, while the block runs.

    Raises QuotaError: `taken`, if another process holds it, or that it cannot be written.
    """
    with _opened(file) as opened:
        if not _locked(opened, file):
            raise QuotaError(taken)
        try:
            yield
        finally:
            # While it is locked: later it might be another's.
            file.unlink(missing_ok=True)


def _opened(file: Path) -> IO[str]:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        return file.open("w")
    except OSError as error:
        raise cannot_write(file, error) from error


def _locked(opened: IO[str], file: Path) -> bool:
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its holder may have removed it since it was opened; the lock would be on no file at all.
        return os.path.samestat(os.fstat(opened.fileno()), file.stat())
    except (BlockingIOError, FileNotFoundError):
        return False
    except OSError as error:
        raise cannot_write(file, error) from error
