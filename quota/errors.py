"""The one exception that callers are meant to see.

Everything a user can cause (a bad file, a recipe for another model, an option out of range) raises
`QuotaError` with a single line: what was wrong and what to do. The command line prints that line and
nothing else. Anything that is not a `QuotaError` is a defect of this package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class QuotaError(ValueError):
    """A mistake that the caller can correct; the message is one line and says how."""


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
