"""`compress_folder` in a process of its own, to which a signal comes at a chosen place.

A place is a kind of call and its number: "write 3" is before the third file of weights is written, "rename 4" before
the fourth file gets its name, "swap 1" before the folder does. Of the renames the first is that of the file which says
what the run is.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def start(source: Path, out: Path, place: str, sent: signal.Signals, family: str = "") -> subprocess.Popen[bytes]:
    """Compress `source`, the tiny LLaVA or a tiny model of `family`, to `out`; `sent` comes at `place`."""
    found = os.pathsep.join([str(HERE.parents[1]), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    arguments = [str(source), str(out), place, str(int(sent)), family]
    return subprocess.Popen([sys.executable, __file__, *arguments], env={**os.environ, "PYTHONPATH": found})


def kill(source: Path, out: Path, place: str, family: str = "") -> None:
    """A run that is killed at `place`."""
    assert start(source, out, place, signal.SIGKILL, family).wait() == -signal.SIGKILL


def _run(source: str, out: str, place: str, sent: str, name: str) -> None:
    from quota import compress_folder as streaming
    from quota.checkpoint import named
    from quota.checkpoint import on_disk as storage
    from support.families import TINY
    from support.families.processor import SAMPLES, HandWritten
    from support.tiny_llava import make_samples

    kind, _, number = place.partition(" ")
    calls = 0

    def signalled(function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == int(number):
                os.kill(os.getpid(), int(sent))
            return function(*arguments, **options)

        return counted

    patched: Any = {
        "write": (storage, "save_file"),
        "rename": (Path, "replace"),
        "swap": (streaming, "replace_folder"),
    }
    owner, function = patched[kind]
    setattr(owner, function, signalled(getattr(owner, function)))
    if name:
        setattr(named, "AutoProcessor", HandWritten(TINY[name]))  # noqa: B010 (its type is that of a class)
    streaming.compress_folder(Path(source), Path(out), SAMPLES if name else make_samples(3))


if __name__ == "__main__":
    _run(*sys.argv[1:])
