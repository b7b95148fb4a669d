"""The sealed part: questions that nothing was chosen by, because the version of the code that is asked never saw them.

The reference suite is drawn anew from a seed; of another suite all is asked. A ledger beside the tables notes which
version of the code was asked which questions. The same version may ask on (a second table, an interrupted one); another
one, which may have been chosen by the answers, may not.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from quota.errors import QuotaError
from quota.files import write_atomically
from quota.samples import Sample
from quota_lab.reference.suite import draw_questions

LEDGER = "sealed.json"
QUESTIONS = 500
"""Of each task."""


class Entry(BaseModel):
    """What the ledger knows about one set of questions."""

    model_config = ConfigDict(extra="forbid")

    questions: str
    """SHA-256 of them all."""
    drawn: str
    """From where, for people."""
    code: str
    """Digest of the code that was asked."""
    tables: list[str]


_LEDGER = TypeAdapter(list[Entry])


def draw(seed: int, questions: int = QUESTIONS) -> list[Sample]:
    """`questions` of each task about new pictures of the reference world; no other seed and no suite has them."""
    pictures = draw_questions(Random(f"sealed {seed}"), questions)
    return [Sample(image, one.text, one.answer, one.task) for image, asked in pictures for one in asked]


def claim(folder: Path, table: str, questions: str, drawn: str, code: str) -> None:
    """Note in the ledger of `folder` that `table` asks these `questions`.

    Raises:
        QuotaError: another version of the code was asked them, or the ledger cannot be read.
    """
    file = folder / LEDGER
    try:
        entries = _LEDGER.validate_json(file.read_bytes()) if file.exists() else []
    except (OSError, ValidationError) as error:
        raise QuotaError(f"{file} is not a ledger of sealed questions; restore it") from error
    entry = next((one for one in entries if one.questions == questions), None)
    if entry is None:
        entry = Entry(questions=questions, drawn=drawn, code=code, tables=[])
        entries.append(entry)
    if entry.code != code:
        raise QuotaError(
            f"these questions ({entry.drawn}) were asked by other code, for {', '.join(entry.tables)}; "
            "draw others, by --draw or into a new --suite"
        )
    entry.tables = sorted({*entry.tables, table})
    write_atomically(file, json.dumps(_LEDGER.dump_python(entries, mode="json"), indent=1) + "\n")
