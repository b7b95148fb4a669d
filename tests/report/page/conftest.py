"""A report as its user gets it: `quota report` on a tiny checkpoint, with questions that mean no good."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from support.commands import call

TASKS = ("<script>alert(1)</script>", "$\\frac{a}{b}$ & 100% \x0b.")
"""What the suite's two tasks are called: a document, a plot and a file have each something to stumble on."""
QUESTION = 'what is "this" </h3><img src=x onerror=alert(2)> {{ 7 * 7 }} \u202ex\u0000'
VOID = {"meta", "img", "input", "br", "link", "hr"}


class Document(HTMLParser):
    """The elements of a page, in order: (tag, attributes, text inside, descendants' included)."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self.open: list[tuple[str, list[str]]] = []
        self.wrong: list[str] = []
        self.feed(page)
        self.close()
        self.wrong += [f"<{tag}> is not closed" for tag, _ in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        text: list[str] = []
        self.elements.append((tag, {name: value or "" for name, value in attrs}, text))
        if tag not in VOID:
            self.open.append((tag, text))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open[-1][0] != tag:
            self.wrong.append(f"</{tag}> at {self.getpos()}")
        else:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        for _, text in self.open:
            text.append(data)

    def all(self, *tags: str) -> list[tuple[dict[str, str], str]]:
        return [(attributes, "".join(text)) for tag, attributes, text in self.elements if tag in tags]


@pytest.fixture(scope="session")
def hostile_suite(suite_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The questions of `suite_folder` under names of tasks, and two questions, that would break out of a page."""
    folder = tmp_path_factory.mktemp("hostile") / "<i>suite&amp;"
    folder.mkdir()
    lines = [json.loads(line) for line in (suite_folder / "questions.jsonl").read_text().splitlines()]
    for number, line in enumerate(lines):
        (folder / line["image"]).write_bytes((suite_folder / line["image"]).read_bytes())
        line["task"] = TASKS[line["task"] == "hard"]
        if number in (0, 4):
            line |= {"question": QUESTION, "answer": "</td><b>"}
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="session")
def file(quota_folder: Path, full_folder: Path, hostile_suite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with everything in it."""
    file = tmp_path_factory.mktemp("report") / "report.html"
    assert call("report", quota_folder, "--suite", hostile_suite, "--baseline", full_folder, "-o", file) == 0
    return file


@pytest.fixture(scope="session")
def page(file: Path) -> str:
    return file.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def document(page: str) -> Document:
    return Document(page)
