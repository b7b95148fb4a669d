"""The manifest finds what was changed, lost or added since the checkpoint was written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from quota.checkpoint.manifest import MANIFEST_FILE, read_manifest, reseal, seal, verify
from quota.errors import QuotaError

FILES = {"config.json": b"{}", "model.safetensors": b"weights", "chat_template.jinja": b"{{ messages }}"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "README.md").write_text("a card, which may change")
    seal(tmp_path)
    return tmp_path


def test_it_names_all_that_a_loader_reads(folder: Path) -> None:
    assert set(read_manifest(folder / MANIFEST_FILE)) == set(FILES)
    assert verify(folder) == len(FILES)


def test_the_card_and_pictures_may_change(folder: Path) -> None:
    (folder / "README.md").write_text("retention measured")
    (folder / "plot.png").write_bytes(b"a picture")
    assert verify(folder) == len(FILES)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param(lambda file: file.unlink(), "is missing", id="lost"),
        pytest.param(lambda file: file.write_bytes(file.read_bytes()[:-1]), "is not whole", id="cut"),
        pytest.param(lambda file: file.write_bytes(bytes(file.stat().st_size)), "is damaged", id="other bytes"),
    ],
)
def test_every_file_is_compared(name: str, spoil: Callable[[Path], object], message: str, folder: Path) -> None:
    spoil(folder / name)
    with pytest.raises(QuotaError, match=message) as raised:
        verify(folder)
    assert name in str(raised.value)


def test_a_file_that_has_joined_is_named(folder: Path) -> None:
    (folder / "generation_config.json").write_text("{}")
    with pytest.raises(QuotaError, match=r"generation_config\.json is not in manifest\.json"):
        verify(folder)


def test_folders_in_it_are_named_too(folder: Path) -> None:
    template = folder / "additional_chat_templates" / "tool_use.jinja"
    template.parent.mkdir()
    template.write_text("{{ messages }}")
    with pytest.raises(QuotaError, match=r"tool_use\.jinja is not in manifest\.json"):
        verify(folder)
    seal(folder)
    assert verify(folder) == len(FILES) + 1
    template.write_text("{{ message }}!")
    with pytest.raises(QuotaError, match=r"tool_use\.jinja is damaged"):
        verify(folder)


def test_files_that_were_changed_on_purpose_are_named_anew_and_no_others(folder: Path) -> None:
    (folder / "config.json").write_text('{"a": 1}')
    (folder / "recipe.json").write_text("{}")
    reseal(folder, ["config.json", "recipe.json"])
    assert verify(folder) == len(FILES) + 1
    (folder / "model.safetensors").write_bytes(b"WEIGHTS")
    reseal(folder, ["config.json"])
    with pytest.raises(QuotaError, match=r"model\.safetensors is damaged"):
        verify(folder)


def test_a_manifest_that_was_deleted_stays_away(folder: Path) -> None:
    (folder / MANIFEST_FILE).unlink()
    reseal(folder, ["config.json"])
    assert not (folder / MANIFEST_FILE).exists()


def test_without_a_manifest_there_is_nothing_to_verify_by(folder: Path) -> None:
    (folder / MANIFEST_FILE).unlink()
    with pytest.raises(QuotaError, match=r"has no manifest\.json"):
        verify(folder)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"version": 2, "files": {}}',
        '{"version": 1}',
        '{"version": 1, "files": {"config.json": "hash"}}',
        '{"version": 1, "files": {"config.json": {"bytes": "2", "sha256": ""}}}',
        json.dumps({"version": 1, "files": {"../secret.json": {"bytes": 2, "sha256": ""}}}),
    ],
)
def test_a_manifest_that_is_none_is_refused(text: str, folder: Path) -> None:
    (folder / MANIFEST_FILE).write_text(text)
    with pytest.raises(QuotaError, match=r"manifest\.json"):
        verify(folder)
