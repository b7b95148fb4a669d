"""What the documents hold that can be checked: commands, programs in Python, equations."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]

_FENCED = re.compile(r"^```(?P<language>\w*)\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^|\n\n)(?P<code>(?: {4}[^\n]*(?:\n|$)|\n(?= {4}))+)")
_SPAN = re.compile(r"`([^`]+)`")


def name(document: Path) -> str:
    """Its path in the repository."""
    return document.relative_to(ROOT).as_posix()


def blocks(document: Path) -> Iterator[tuple[str, str]]:
    """(language, code) of every block of code; an indented one has no language."""
    text = document.read_text()
    for found in _FENCED.finditer(text):
        yield found["language"], found["code"]
    for found in _INDENTED.finditer(_FENCED.sub("", text)):
        yield "", re.sub(r"^ {4}", "", found["code"], flags=re.MULTILINE)


def commands(document: Path) -> Iterator[list[str]]:
    """The words of every command line, variables of the same document put in; comments and settings left out."""
    variables: dict[str, list[str]] = {}
    for language, code in blocks(document):
        if language not in ("", "sh", "text"):
            continue
        for line in code.replace("\\\n", " ").splitlines():
            try:
                words = shlex.split(line, comments=True)
            except ValueError:
                # An apostrophe: no command.
                continue
            for part in _parts(words):
                while part and re.fullmatch(r"\w+=.*", part[0]):
                    variable, _, value = part.pop(0).partition("=")
                    variables["$" + variable] = value.split()
                yield [word for given in part for word in variables.get(given, [given])]


def spans(document: Path) -> Iterator[list[str]]:
    """The words of every command of ours inside a sentence, which may leave out what is required."""
    text = _INDENTED.sub("\n\n", _FENCED.sub("", document.read_text()))
    for found in _SPAN.findall(text):
        if found.startswith("quota "):
            yield shlex.split(found)


def _parts(words: list[str]) -> Iterator[list[str]]:
    part: list[str] = []
    for word in [*words, "&&"]:
        if word == "&&":
            if part:
                yield part
            part = []
        else:
            part.append(word)
