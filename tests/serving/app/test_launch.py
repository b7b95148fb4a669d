"""`quota app` where it cannot start: one line."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from quota.cli import main
from quota.serving.app import launch


def test_without_gradio(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], quota_folder: Path
) -> None:
    monkeypatch.setattr(launch, "find_spec", lambda name: None if name == "gradio" else importlib.util.find_spec(name))
    with pytest.raises(SystemExit) as ended:
        main(["app", str(quota_folder)])
    assert ended.value.code == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line == 'quota: the page needs more packages; pip install "quota-vlm[app]"'
