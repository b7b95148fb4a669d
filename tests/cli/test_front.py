"""What `quota` does without a command: its version, completion, and being a module."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from quota.cli import main
from quota.version import __version__


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert isinstance(raised.value.code, int)
    return raised.value.code


def test_the_version_is_one_line(capsys) -> None:
    assert call("--version") == 0
    assert capsys.readouterr().out == f"quota {__version__}\n"


@pytest.mark.slow
def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "quota", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"quota {__version__}\n", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_it_prints_a_script_for_every_shell(shell: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """What `--show-completion` prints for the shell that it finds itself in."""
    monkeypatch.setenv("_QUOTA_COMPLETE", f"source_{shell}")
    assert call() == 0
    assert f"_QUOTA_COMPLETE=complete_{shell}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("quota comp", ["compress"]),
        ("quota --ver", ["--version"]),
        ("quota inspect --ver", ["--verify"]),
        # The laboratory's commands, and groups of commands.
        ("quota bench e", ["e2e"]),
    ],
)
def test_tab_completes_words(typed: str, completed: list[str], monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("_QUOTA_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))
    assert call() == 0
    assert capsys.readouterr().out.split() == completed


def test_help_says_what_quota_is_for_and_how_to_complete(capsys) -> None:
    assert call("--help") == 0
    shown = capsys.readouterr().out
    assert "vision-language model smaller" in shown and "quota compress reference small/" in shown
    assert re.search(r"--version .*--install-completion", shown, re.DOTALL)
