"""The documents keep their word: commands exist and run, programs run, equations are those of the code."""

from __future__ import annotations

import importlib.util
import re
import shutil
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import typer.main
from support.documents import DOCUMENTS, ROOT, blocks, commands, name, spans
from support.tiny_llava import make_model, make_samples, processor
from typer._click.exceptions import BadOptionUsage, MissingParameter, NoArgsIsHelpError

import quota
from quota.cli import COMMANDS, checkpoints, doctor, main, questions, reporting, serving  # noqa: F401
from quota.cli.app import app
from quota.prompts import build_inputs
from quota.samples import Sample

LINES = [(name(document), words) for document in DOCUMENTS for words in commands(document) if words]
OURS = [(place, words[1:]) for place, words in LINES if words[0] == "quota"]
INSIDE = [(name(document), words[1:]) for document in DOCUMENTS for words in spans(document)]

RUN = (
    *(["doctor"], ["inspect"], ["study", "list"]),
    *(["run", "small/"], ["explain", "small/"], ["eval", "small/"], ["report", "small/"]),
)
"""Beginnings of commands that take seconds, with tiny models where the reader's stand. Others take minutes, or want
data from elsewhere; tests/cli runs `compress` on fewer samples. Workers want Ray (`make test-serve`)."""


def labels(lines: list[tuple[str, list[str]]]) -> list[str]:
    return [f"{place}: {' '.join(words)}" for place, words in lines]


def parse(words: list[str]) -> None:
    """Let the parser of the application read a command line; raises what it raises."""
    command: Any = typer.main.get_command(app)
    if words[0].startswith("-"):
        # Options of `quota` itself act as soon as they are read.
        assert [option for option in command.params if words[0] in option.opts]
        return
    context, rest = None, words
    while True:
        with command.make_context(command.name, list(rest), parent=context) as context:
            if not hasattr(command, "commands"):
                return
            _, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])


@pytest.fixture(scope="module", autouse=True)
def every_command() -> None:
    for others in entry_points(group=COMMANDS):
        others.load()


@pytest.mark.parametrize("words", [words for _, words in OURS], ids=labels(OURS))
def test_a_command_is_one_that_the_parser_takes(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # Some are for machines with a GPU.
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    parse(words)


@pytest.mark.parametrize("words", [words for _, words in INSIDE], ids=labels(INSIDE))
def test_a_command_in_a_sentence_has_words_that_the_parser_knows(words: list[str]) -> None:
    try:
        parse(words)
    except (BadOptionUsage, MissingParameter, NoArgsIsHelpError):
        # Values and what is required may be left out there.
        return


@pytest.mark.parametrize("words", ["compres a b", "compress a b --keeps 0.3", "eval small/ --limit none", "bench op"])
def test_the_parser_would_complain(words: str) -> None:
    with pytest.raises(Exception, match=r"No such|valid integer"):
        parse(words.split())


def test_other_commands_name_what_is_there() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for place, words in LINES:
        if words[0] == "make":
            assert words[1] in targets, place
        elif words[:2] == ["python", "-m"] and words[2].startswith("quota"):
            assert importlib.util.find_spec(words[2]), place
        elif words[0] == "python" and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file(), place


@pytest.fixture(scope="module")
def workplace(
    tmp_path_factory: pytest.TempPathFactory, quota_folder: Path, full_folder: Path, suite_folder: Path
) -> Path:
    """A folder with what the documents' commands name, all of it tiny."""
    folder = tmp_path_factory.mktemp("workplace")
    shutil.copytree(quota_folder, folder / "small")
    for model in ("llava-hf/llava-1.5-7b-hf", "model"):
        shutil.copytree(full_folder, folder / model)
    for suite in ("my-questions", "suite", "vqa"):
        shutil.copytree(suite_folder, folder / suite)
    pictures = [sample.pictures()[0] for sample in make_samples(3, seed=2)]
    for file, picture in zip(("street.jpg", "before.jpg", "after.jpg"), pictures, strict=True):
        picture.save(folder / file)
    pictures[0].save(folder / "fall.gif", save_all=True, append_images=pictures[1:])
    return folder


# Once each, however many pages name it.
DISTINCT = {tuple(words): (place, words) for place, words in reversed(OURS)}.values()
RUNNING = [
    line for line in DISTINCT if any(line[1][: len(begin)] == begin for begin in RUN) and "--workers" not in line[1]
]


@pytest.mark.slow
@pytest.mark.parametrize("words", [words for _, words in RUNNING], ids=labels(RUNNING))
def test_a_command_of_seconds_runs(words: list[str], workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0


PROGRAMS = [
    (name(document), code)
    for document in DOCUMENTS
    for language, code in blocks(document)
    # What talks to a server, or is one, wants packages that are tested elsewhere (`make test-serve`).
    if language == "python" and not any(package in code for package in ("openai", "ray"))
]


@pytest.mark.slow
@pytest.mark.parametrize("code", [code for _, code in PROGRAMS], ids=[place for place, _ in PROGRAMS])
def test_a_program_runs(code: str, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tiny model where the reader's stands."""
    monkeypatch.chdir(workplace)
    tools = processor()
    inputs = build_inputs(tools, [Sample(Path("street.jpg"), "what is this")])
    exec(compile(code, "document", "exec"), {"model": make_model(), "processor": tools, "inputs": inputs})


def test_the_reference_names_everything_that_the_package_offers() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    found = dict(re.findall(r"^::: (\S+)\n    options: \{heading: quota\.(\w+),", page, re.MULTILINE))
    for place, offered in found.items():
        module, _, attribute = place.rpartition(".")
        assert getattr(import_module(module), attribute) is getattr(quota, offered)
    assert sorted([*found.values(), "__version__"]) == quota.__all__


def test_equations_of_the_method_stand_in_the_code() -> None:
    """Every line of the page's blocks opens a line of a module, spaces aside."""
    sources = "\n".join(file.read_text() for file in (ROOT / "quota").rglob("*.py"))
    lines = {"".join(line.split()) for line in sources.splitlines()}
    equations = [line for _, code in blocks(ROOT / "docs" / "method.md") for line in code.splitlines() if line.strip()]
    assert len(equations) > 25
    for equation in equations:
        assert any(line.startswith("".join(equation.split())) for line in lines), equation


def hook() -> ModuleType:
    found = importlib.util.spec_from_file_location("site_pages", ROOT / "docs" / "site_pages.py")
    assert found and found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("page", "link", "becomes"),
    [
        ("index.md", "[a](docs/study/README.md#results)", "[a](study/README.md#results)"),
        ("index.md", "![a](docs/kept_tokens.png)", "![a](kept_tokens.png)"),
        ("index.md", "[a](CONTRIBUTING.md)", "[a](contributing.md)"),
        ("quickstart.md", "[a](../README.md)", "[a](index.md)"),
        (
            "study/README.md",
            "[`a` b](../../quota/errors.py)",
            "[`a` b](https://host/us/quota/blob/main/quota/errors.py)",
        ),
        ("study/README.md", "[a](../../CHANGELOG.md)", "[a](../changelog.md)"),
        ("study/README.md", "[a](keep.md), [b](https://x.y/z) and [c](#d)", None),
        ("reading.md", "[a](../quota/nothing.py)", None),
        ("reading.md", "`[a](../README.md)`\n\n    [a](../README.md)\n\n```\n[a](../README.md)\n```\n", None),
    ],
)
def test_links_lead_somewhere_from_the_site(page: str, link: str, becomes: str | None) -> None:
    assert hook().rewritten(link, page, "https://host/us/quota/") == (becomes or link)


def test_without_a_repository_links_to_source_files_are_text() -> None:
    assert hook().rewritten("see [`errors`](../quota/errors.py).", "reading.md", None) == "see `errors`."
