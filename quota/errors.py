"""The one exception that callers are meant to see.

Everything a user can cause (a bad file, a recipe for another model, an option out of range) raises
`QuotaError` with a single line: what was wrong and what to do. The command line prints that line and
nothing else. Anything that is not a `QuotaError` is a defect of this package.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


LONGEST = 300
"""Characters of a message: what a person reads in one go."""
_LONGEST_WORD = 70


class QuotaError(ValueError):
    """A mistake that the caller can correct; the message is one line of at most `LONGEST` characters and says how."""

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))


class SaidElsewhere(SystemExit):
    """This process has failed as one of several, and another says why."""

    def __init__(self) -> None:
        super().__init__(1)


def one_line(message: str) -> str:
    """`message` on one line, without control characters, and at most `LONGEST` long.

    What is too long is mostly a path or a value that somebody sent: such words lose their middle first.
    """
    words = ["".join(char if char.isprintable() else ascii(char)[1:-1] for char in word) for word in message.split()]
    line = " ".join(words)
    if len(line) > LONGEST:
        line = " ".join(_shorten(word, _LONGEST_WORD) for word in words)
    return _shorten(line, LONGEST)


def _shorten(text: str, length: int) -> str:
    if len(text) <= length:
        return text
    # The end of a path names the file, and the end of a message says what to do.
    end = (length - 3) // 2
    return f"{text[: length - 3 - end]}...{text[-end:]}"


def check_number(
    name: str,
    value: float,
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    at_most: float = math.inf,
    hint: str = "",
) -> None:
    """Raise QuotaError unless `value` is a finite number above, at least and at most these; `hint` follows the rule."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if number and math.isfinite(value) and above < value and at_least <= value <= at_most:
        return
    limits = {"above": above, "at least": at_least, "at most": at_most}
    rule = " and ".join(f"{words} {limit:g}" for words, limit in limits.items() if math.isfinite(limit))
    raise QuotaError(f"{name} must be {rule or 'a finite number'}{hint and f' ({hint})'}, got {value}")


def first_problem(error: ValidationError) -> str:
    """The first thing that pydantic found wrong, as one line that names the key."""
    # A default that depends on a bad field fails with it; that is a consequence, never the cause.
    problem = next(found for found in error.errors() if found["type"] != "default_factory_not_called")
    key = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key!r}; remove it or correct its spelling"
    if problem["type"] == "missing":
        return f"key {key!r} is missing"
    # Validators of ours raise whole sentences.
    cause = problem.get("ctx", {}).get("error")
    message = str(cause) if isinstance(cause, ValueError) else problem["msg"].lower()
    return " ".join((f"key {key!r}: {message}" if key else message).split())
