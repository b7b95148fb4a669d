"""The kill matrix of `quota.rebudget`: killed before every single change of the disk, and run again.

    python killed_rebudget.py OUT FOLDER

prints a line of JSON for every change: its number, the change, and what was wrong ("" for nothing), as killed.py does.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
from pathlib import Path

import torch

from quota.checkpoint import rebudget
from support.killed import contents, die_before, forked

KEEP = 0.1


def fault(out: Path, old: dict[str, bytes], new: dict[str, bytes]) -> str:
    """What is wrong after a run that was killed or came to its end, and after the next one."""
    if not out.exists():
        return "OUT is missing"
    if contents(out) not in (old, new):
        return "OUT is neither the old one nor the new one"
    if again := forked(lambda: rebudget(out, KEEP)):
        return f"the next run ended with {again}"
    if contents(out) != new:
        return "other files"
    left = sorted(file.name for file in out.parent.iterdir() if file != out)
    return f"left behind: {', '.join(left)}" if left else ""


def matrix(source: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    whole = Path(shutil.copytree(source, folder / "whole" / "out"))
    old = contents(whole)
    assert forked(lambda: rebudget(whole, KEEP)) == 0
    new = contents(whole)
    number, code = 0, -signal.SIGKILL
    while code == -signal.SIGKILL:
        number += 1
        out = Path(shutil.copytree(source, folder / f"{number}" / "out"))

        def run(at: int = number, out: Path = out) -> None:
            die_before(at, folder / "note")
            rebudget(out, KEEP)

        (folder / "note").unlink(missing_ok=True)
        code = forked(run)
        wrong = f"ended with {code}" if code not in (0, -signal.SIGKILL) else fault(out, old, new)
        print(json.dumps([number, (folder / "note").read_text(), wrong]), flush=True)
        shutil.rmtree(out.parent)


if __name__ == "__main__":
    matrix(Path(sys.argv[1]), Path(sys.argv[2]))
