"""The `quota` command: each subcommand is a thin shell around one function of the package.

What was wrong is said in one line on the error stream, with exit code 1 (2 for a mistake in the command line itself);
a traceback appears only with --debug. Packages beside this one add commands of their own by the entry-point group
`quota.commands`, as the laboratory does (demo, bench, study, ...). Nothing is imported before `main` runs, so that an
interruption in the first second finds it ready.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import entry_points
from types import FrameType

from quota.errors import QuotaError, SaidElsewhere, one_line

__all__ = ["main"]

COMMANDS = "quota.commands"
"""Entry points: modules that define commands when they are imported."""
_GO_ON = ("ablate", "compress", "study")
"""Commands that keep what they have finished."""
_SPIN = "4000"
"""Turns of the loop in which OpenMP's threads wait before they sleep: 0.1 ms, from one operator to the next. By itself
libgomp waits for milliseconds, which beside busy processes are milliseconds in which none of them works."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Exits with 0, 1 (it went wrong), 2 (wrong command line), 130 (Ctrl-C) or 143 (SIGTERM)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    with _signals() as came:
        try:
            code = _run([word for word in given if word != "--debug"])
            if came:
                # typer has made an exit code of it.
                raise KeyboardInterrupt
            # What is written to a full disk or a closed pipe fails here, and not when Python has ended.
            sys.stdout.flush()
        except BaseException as error:
            code = _explain(error, came, given[:1], debug)
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    # Read when torch loads libgomp, which is after this.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPIN)
    _refuse_ranks(arguments)
    # Imported for the commands that they define.
    from quota.cli import checkpoints, doctor, questions, reporting, serving  # noqa: F401
    from quota.cli.app import app

    # A line that a user can read; and of giant pictures we speak ourselves.
    warnings.formatwarning = lambda message, *place, **line: f"note: {message}\n"
    warnings.filterwarnings("ignore", "Image size")
    for others in entry_points(group=COMMANDS):
        others.load()
    code = app(args=arguments, prog_name="quota", standalone_mode=False)
    return code if isinstance(code, int) else 0


def _refuse_ranks(arguments: list[str]) -> None:
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    from quota.ranks import launched

    if launched() > 1 and arguments[:1] != ["compress"]:
        raise QuotaError("of all commands only `compress` shares its work among ranks; start others without torchrun")


@contextmanager
def _signals() -> Iterator[list[int]]:
    """While the block runs, SIGINT and SIGTERM end it in order, by KeyboardInterrupt; yields those that came."""
    came: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        came.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _explain(error: BaseException, came: list[int], command: list[str], debug: bool) -> int:
    """Say on the error stream what ended a command, and return the exit code."""
    if debug:
        traceback.print_exc()
    if isinstance(error, SaidElsewhere):
        return 128 + came[0] if came else 1
    if came or isinstance(error, KeyboardInterrupt):
        # Whatever was raised on the way out, this is why.
        then = "goes on" if command and command[0] in _GO_ON else "starts anew"
        _say(f"interrupted; the same command {then}")
        return 128 + (came[0] if came else signal.SIGINT)
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, OSError):
        _silence_output()
    if isinstance(error, BrokenPipeError):
        # Who read has read enough.
        return 1
    if not debug and (message := _message(error)):
        _say(message)
    return getattr(error, "exit_code", 1)


def _message(error: BaseException) -> str:
    from typer.exceptions import TyperException

    if isinstance(error, QuotaError):
        return str(error)
    if isinstance(error, TyperException):
        hint = "" if entry_points(group=COMMANDS) else "; the laboratory's come with the package quota_lab"
        said = error.format_message().rstrip(".")
        # Nothing, where help was shown in place of a command.
        return f"{said}; see `quota --help`{hint}" if said else ""
    if isinstance(error, OSError) and error.strerror:
        # The system says no: a name that is too long, no permission, a full disk.
        return f"{error.filename or 'the output'}: {error.strerror}; choose another place or correct what is in the way"
    if isinstance(error, MemoryError):
        return "out of memory; give less at once"
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first} (this is a defect; --debug shows where)" if str(error) else ""


def _silence_output() -> None:
    """If nothing can be written any more, drop what is left: Python would try again at its end, and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(message: str) -> None:
    try:
        print(f"quota: {one_line(message)}", file=sys.stderr, flush=True)
    except OSError:
        # Nobody listens.
        return
