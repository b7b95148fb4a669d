"""What a release is made of: the wheel's tag, one version everywhere, and a public CI that runs what .ci/run runs."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from setuptools import Distribution

from quota.version import __version__

ROOT = Path(__file__).resolve().parents[1]


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def setup() -> ModuleType:
    found = importlib.util.spec_from_file_location("quota_setup", ROOT / "setup.py")
    assert found and found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.mark.parametrize("platform", ["linux_x86_64", "manylinux_2_28_x86_64"])
def test_a_wheel_is_for_every_python_of_its_platform(platform: str) -> None:
    """The library is called by ctypes, so that no version of Python is built in."""
    made = setup()
    wheel = made.PlatformWheel(Distribution({"name": "quota-vlm", "version": "1", "ext_modules": [made.KERNELS]}))
    wheel.plat_name = platform
    wheel.ensure_finalized()
    assert wheel.get_tag() == ("py3", "none", platform)


def test_without_the_library_a_wheel_is_for_every_platform() -> None:
    wheel = setup().PlatformWheel(Distribution({"name": "quota-vlm", "version": "1"}))
    wheel.ensure_finalized()
    assert wheel.get_tag() == ("py3", "none", "any")


def test_one_version_everywhere() -> None:
    newest = re.search(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest and newest[1] == __version__ == read("CITATION.cff")["version"]


def test_every_path_of_the_notice_is_there() -> None:
    named = re.findall(r"(?:[\w-]+/)+[\w.-]*\w", (ROOT / "NOTICE").read_text())
    assert len(named) == 6 and not [path for path in named if not (ROOT / path).exists()]
    assert {path for path in named if path.startswith("licenses/")} == {
        file.relative_to(ROOT).as_posix() for file in (ROOT / "licenses").iterdir()
    }


def test_the_citation_names_authors_and_the_paper() -> None:
    citation = read("CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["authors"] == [{"name": "The QUOTA authors"}]
    [paper] = citation["references"]
    assert {"type", "title", "authors"} <= set(paper) and "2604.17320" in paper["url"]


def test_the_public_workflow_runs_what_developers_run() -> None:
    steps = read(".github/workflows/ci.yml")["jobs"]["all"]["steps"]
    assert ".ci/run" in [step.get("run") for step in steps]
    targets = re.findall(r"^make (\S+)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert targets == ["test", "docs", "test-processors", "test-serve", "test-vllm"]


def test_wheels_are_built_once_for_manylinux_and_tried() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["cibuildwheel"]
    assert settings["build"] == "cp311-manylinux_x86_64"
    pinned = re.search(r"^torch==\S+", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned and f"install {pinned[0]} " in settings["before-test"]
    assert any("cibuildwheel" in step.get("uses", "") for step in steps("wheels"))


def steps(job: str) -> list[dict[str, Any]]:
    return read(".github/workflows/wheels.yml")["jobs"][job]["steps"]


def test_commits_are_looked_at_as_lint_does() -> None:
    """The same programs with the same settings; `make lint` looks at everything, a hook at what is committed."""
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert lint
    asked = {line.strip().removesuffix(" .").replace("$(BIN)", ".venv/bin") for line in lint[1].splitlines()}
    [local] = read(".pre-commit-config.yaml")["repos"]
    assert {hook["entry"].removesuffix(" --force-exclude") for hook in local["hooks"]} == asked


@pytest.mark.parametrize("form", ["bug", "model"])
def test_forms_of_issues_are_complete(form: str) -> None:
    found = read(f".github/ISSUE_TEMPLATE/{form}.yml")
    assert {"name", "description", "body"} <= set(found)
    names = [field["id"] for field in found["body"]]
    assert len(names) == len(set(names)) and all(field["attributes"]["label"] for field in found["body"])
