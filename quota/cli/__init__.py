"""The `quota` command: each subcommand is a thin shell around one function of the package.

What was wrong is said in one line on the error stream, with exit code 1 (2 for a mistake in the command line itself);
a traceback appears only with --debug. Packages beside this one add commands of their own by the entry-point group
`quota.commands`, as the laboratory does (demo, bench, study, ...).
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import entry_points

from typer.exceptions import TyperException

# Imported for the commands that they define.
from quota.cli import checkpoints, doctor, questions
from quota.cli.app import app
from quota.errors import QuotaError

__all__ = ["app", "checkpoints", "doctor", "main", "questions"]

COMMANDS = "quota.commands"
"""Entry points: modules that define commands when they are imported."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Exits with 0, 1 (it went wrong), 2 (wrong command line) or 130 (interrupted)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    for others in entry_points(group=COMMANDS):
        others.load()
    try:
        code = app(args=[word for word in given if word != "--debug"], prog_name="quota", standalone_mode=False)
    except Exception as error:
        if debug:
            traceback.print_exc()
        elif str(error):
            print(f"quota: {_one_line(error)}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))
    sys.exit(code if isinstance(code, int) else 0)


def _one_line(error: Exception) -> str:
    if isinstance(error, QuotaError):
        return str(error)
    if isinstance(error, TyperException):
        hint = "" if entry_points(group=COMMANDS) else "; the laboratory's come with the package quota_lab"
        return f"{error.format_message().rstrip('.')}; see `quota --help`{hint}"
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first} (this is a defect; --debug shows where)"
