"""The rooms of the house: which may import which. docs/architecture.md draws the same table."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the ground up; a room imports rooms above its own line only, and of those no more than it names.
ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "version": set(),
    "progress": set(),
    "files": {"errors"},
    "ranks": {"errors"},
    "scheme": {"errors"},
    "samples": {"errors", "files"},
    "prompts": {"errors", "samples"},
    "ops": {"errors"},
    "models": {"errors"},
    "quantization": {"errors", "ranks", "scheme", "ops"},
    "attention": {"errors", "ranks", "scheme", "ops", "models", "quantization"},
    "pruning": {"errors", "scheme", "files", "ops", "models", "quantization", "attention"},
    "calibration": {"errors", "progress", "ranks", "scheme", "ops", "models", "quantization", "attention"},
    "allocation": {
        *("errors", "progress", "files", "ranks", "scheme", "samples", "prompts", "ops", "models", "attention"),
        *("pruning", "calibration"),
    },
    "checkpoint": {
        *("errors", "version", "progress", "files", "ranks", "scheme", "samples", "ops", "models", "quantization"),
        *("attention", "pruning", "calibration", "allocation"),
    },
    "evaluation": {
        *("errors", "progress", "samples", "prompts", "ops", "models", "attention", "pruning", "checkpoint"),
    },
    "compress": {
        *("errors", "version", "progress", "ranks", "scheme", "samples", "prompts", "ops", "models", "attention"),
        *("pruning", "calibration", "checkpoint", "allocation"),
    },
    "compress_folder": {
        *("errors", "version", "progress", "files", "ranks", "scheme", "samples", "prompts", "ops", "checkpoint"),
        "compress",
    },
    "report": {
        *("errors", "version", "progress", "files", "scheme", "samples", "prompts", "ops", "models", "pruning"),
        *("allocation", "checkpoint", "evaluation"),
    },
    "serving": {
        *("errors", "files", "scheme", "samples", "prompts", "ops", "models", "attention", "pruning", "allocation"),
        *("checkpoint", "report"),
    },
    "__init__": {"errors", "version", "scheme", "samples", "pruning", "checkpoint", "allocation", "compress"},
    "cli": {
        *("errors", "version", "files", "ranks", "scheme", "samples", "prompts", "ops", "pruning", "checkpoint"),
        *("evaluation", "compress", "compress_folder", "report", "serving"),
    },
    "__main__": {"cli"},
}


def modules(package: str) -> dict[str, Path]:
    """Dotted name -> file."""
    files = (ROOT / package).rglob("*.py")
    return {file.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): file for file in files}


def imports(file: Path, known: set[str]) -> Iterator[str]:
    """Modules of ours that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            for found in (name, f"{name}.__init__", name.rpartition(".")[0], f"{name.rpartition('.')[0]}.__init__"):
                if found in known:
                    yield found
                    break


def room(module: str) -> str:
    return module.split(".")[1]


PRODUCT = modules("quota")
ARROWS = {module: set(imports(file, set(PRODUCT))) - {module} for module, file in PRODUCT.items()}


def test_the_product_never_imports_the_laboratory() -> None:
    known = {*PRODUCT, *modules("quota_lab")}
    found = {(module, name) for module, file in PRODUCT.items() for name in imports(file, known) if "lab" in name}
    assert not {pair for pair in found if pair[1].startswith("quota_lab")}


def test_every_room_is_in_the_table_and_below_those_that_import_it() -> None:
    assert {room(module) for module in PRODUCT} == set(ROOMS)
    order = list(ROOMS)
    for name, below in ROOMS.items():
        assert all(order.index(other) < order.index(name) for other in below), name


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_imports_what_the_table_says(name: str) -> None:
    taken = {room(target) for module, targets in ARROWS.items() if room(module) == name for target in targets}
    assert taken - {name} == ROOMS[name]


def test_no_circle_and_at_most_twelve_floors() -> None:
    # A package's face takes from its files, and they never from it.
    order = TopologicalSorter(ARROWS).static_order()
    assert set(order) == set(PRODUCT)
    floors: dict[str, int] = {}
    for name, below in ROOMS.items():
        floors[name] = 1 + max((floors[other] for other in below), default=0)
    assert max(floors.values()) <= 12


def test_few_entries_and_no_long_file() -> None:
    entries = [entry for entry in (ROOT / "quota").iterdir() if entry.name != "__pycache__"]
    assert sum(entry.is_dir() for entry in entries) <= 12
    assert sum(entry.suffix == ".py" for entry in entries) <= 12
    sources = [file for ending in ("py", "cpp", "h") for file in (ROOT / "quota").rglob(f"*.{ending}")]
    assert not [file for file in sources if len(file.read_text().splitlines()) > 300]


def test_the_documentation_draws_the_same_rooms_in_the_same_order() -> None:
    lines = (ROOT / "docs" / "architecture.md").read_text().splitlines()
    drawn = [line.split("`")[1].rstrip("/") for line in lines if line.startswith("| `")]
    assert drawn == list(ROOMS)
