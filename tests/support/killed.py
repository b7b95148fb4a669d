"""The kill matrix: `compress_folder` killed before every single change of the disk, and run again.

A change is a write, a rename, an exchange, a lock, a new folder or a removal. A run is a child forked from a process
that has imported everything; before its n-th change it kills itself. Then the same run is made once more, unharmed.

    python killed.py SOURCE FOLDER VARIANT [N]      VARIANT: empty, old, "old in two steps"; from change N on

prints a line of JSON for every n: the change, and what was wrong ("" for nothing).
"""

from __future__ import annotations

import builtins
import fcntl
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from quota import files
from quota.checkpoint import on_disk
from quota.compress_folder import compress_folder
from quota.scheme import QuantizationScheme
from support.tiny_llava import make_samples

VARIANTS = ("empty", "old", "old in two steps")
SCHEME = QuantizationScheme(transforms="hadamard")
_CHANGES: tuple[tuple[Any, str], ...] = (
    *((os, name) for name in ("replace", "rename", "mkdir", "unlink", "rmdir", "fsync", "link")),
    *((owner, name) for owner, name in ((os, "open"), (builtins, "open"), (on_disk, "save_file"), (fcntl, "flock"))),
    (files, "_exchange"),
)


def compress(source: Path, out: Path, scheme: QuantizationScheme = SCHEME) -> None:
    compress_folder(source, out, make_samples(1), scheme=scheme, method="paper", layers=(0,))


def writes(name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> bool:
    """Whether a call of the function `name` changes the disk."""
    if name != "open":
        return True
    how = options.get("mode", arguments[1] if len(arguments) > 1 else "r")
    return bool(how & os.O_CREAT) if isinstance(how, int) else bool(set("wxa+") & set(how))


def die_before(number: int, note: Path) -> None:
    """Let this process be killed before its change `number`, after writing to `note` what that is."""
    done = 0

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal done
            if writes(name, arguments, options):
                done += 1
                if done == number:
                    os.write(noting, f"{name} {Path(str(arguments[0])).name}".encode())
                    os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    noting = os.open(note, os.O_CREAT | os.O_WRONLY)
    for owner, name in _CHANGES:
        setattr(owner, name, counted(name, getattr(owner, name)))


def forked(work: Callable[[], object]) -> int:
    """Do `work` in a child; its exit code, negative for a signal."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != ".replaced"}


def fault(source: Path, out: Path, code: int, old: dict[str, bytes] | None, whole: dict[str, bytes], gap: bool) -> str:
    """What is wrong after a run that ended with `code`, and after the next one."""
    if code not in (0, -signal.SIGKILL):
        return f"ended with {code}"
    if out.exists():
        if contents(out) not in (old, whole):
            return "OUT is neither the old one nor the new one"
    elif old is not None and not gap:
        return "OUT is missing"
    if again := forked(lambda: compress(source, out)):
        return f"the next run ended with {again}"
    if contents(out) != whole:
        return "other files"
    left = sorted(file.name for file in out.parent.iterdir() if file != out)
    return f"left behind: {', '.join(left)}" if left else ""


def matrix(source: Path, folder: Path, variant: str, first: int = 1) -> None:
    torch.set_num_threads(1)
    if variant == VARIANTS[2]:
        setattr(files, "_exchange", lambda one, other: False)  # noqa: B010 (no file system with an exchange)
    assert forked(lambda: compress(source, folder / "whole" / "out")) == 0
    assert forked(lambda: compress(source, folder / "old" / "out", QuantizationScheme(weight_group=32))) == 0
    whole, old = contents(folder / "whole" / "out"), contents(folder / "old" / "out")
    number, code = first - 1, -signal.SIGKILL
    while code == -signal.SIGKILL:
        number += 1
        place = folder / f"{number}"
        place.mkdir(parents=True)
        if variant != "empty":
            shutil.copytree(folder / "old" / "out", place / "out")

        def run(at: int = number, out: Path = place / "out") -> None:
            die_before(at, folder / "note")
            compress(source, out)

        (folder / "note").unlink(missing_ok=True)
        code = forked(run)
        wrong = fault(source, place / "out", code, None if variant == "empty" else old, whole, variant == VARIANTS[2])
        print(json.dumps([number, (folder / "note").read_text(), wrong]), flush=True)
        shutil.rmtree(place)


if __name__ == "__main__":
    matrix(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], *map(int, sys.argv[4:]))
