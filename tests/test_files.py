"""A reader sees a whole file or folder or the old one, whatever goes wrong while it is written."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from quota.errors import QuotaError
from quota.files import staged_folder, write_atomically


def checkpoint(folder: Path, content: str) -> None:
    (folder / "config.json").write_text('{"quota": {}}')
    (folder / "weights").write_text(content)


class TestWriteAtomically:
    @pytest.mark.parametrize(("content", "bytes_"), [("Ümlaut\n", "Ümlaut\n".encode()), (b"\x00\xff", b"\x00\xff")])
    def test_writes(self, tmp_path: Path, content: str | bytes, bytes_: bytes) -> None:
        write_atomically(tmp_path / "new" / "file", content)
        assert (tmp_path / "new" / "file").read_bytes() == bytes_

    def test_replaces_and_leaves_nothing_behind(self, tmp_path: Path) -> None:
        for content in ("old, and longer", "new"):
            write_atomically(tmp_path / "file", content)
        assert (tmp_path / "file").read_text() == "new"
        assert os.listdir(tmp_path) == ["file"]

    def test_failure_keeps_the_old_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_atomically(tmp_path / "file", "old")

        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(QuotaError, match="no space left on the disk"):
            write_atomically(tmp_path / "file", "new")
        assert (tmp_path / "file").read_text() == "old"
        assert os.listdir(tmp_path) == ["file"]

    def test_permissions_follow_the_umask(self, tmp_path: Path) -> None:
        (tmp_path / "plain").write_text("")
        write_atomically(tmp_path / "file", "")
        assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode

    def test_follows_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(tmp_path / "file")
        write_atomically(tmp_path / "link", "text")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "file").read_text() == "text"

    def test_writes_to_a_pipe(self) -> None:
        command = "from quota.files import write_atomically; write_atomically('/dev/stdout', 'figures')"
        done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
        assert done.stdout == "figures"

    def test_refuses_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(QuotaError, match="is a folder"):
            write_atomically(tmp_path, "text")

    def test_parent_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("text")
        with pytest.raises(QuotaError, match="cannot write"):
            write_atomically(tmp_path / "file" / "inner", "text")


class TestStagedFolder:
    def test_appears_when_the_block_ends(self, tmp_path: Path) -> None:
        target = tmp_path / "a" / "out"
        with staged_folder(target) as folder:
            (folder / "file").write_text("text")
            assert not target.exists()
        assert (target / "file").read_text() == "text"
        assert os.listdir(tmp_path / "a") == ["out"]

    @pytest.mark.parametrize("exception", [RuntimeError, KeyboardInterrupt])
    def test_vanishes_when_the_block_raises(self, tmp_path: Path, exception: type[BaseException]) -> None:
        with pytest.raises(exception), staged_folder(tmp_path / "out") as folder:
            (folder / "file").write_text("half")
            raise exception
        assert os.listdir(tmp_path) == []

    def test_replaces_a_checkpoint_of_ours(self, tmp_path: Path) -> None:
        for content in ("old", "new"):
            with staged_folder(tmp_path / "out") as folder:
                checkpoint(folder, content)
        assert (tmp_path / "out" / "weights").read_text() == "new"
        assert os.listdir(tmp_path) == ["out"]

    def test_failure_keeps_the_old_checkpoint(self, tmp_path: Path) -> None:
        with staged_folder(tmp_path / "out") as folder:
            checkpoint(folder, "old")
        with pytest.raises(RuntimeError), staged_folder(tmp_path / "out") as folder:
            checkpoint(folder, "half")
            raise RuntimeError
        assert (tmp_path / "out" / "weights").read_text() == "old"

    def test_failing_rename_brings_the_old_checkpoint_back(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with staged_folder(tmp_path / "out") as folder:
            checkpoint(folder, "old")
        rename = Path.rename
        with pytest.raises(QuotaError, match="cannot write"), staged_folder(tmp_path / "out") as folder:
            checkpoint(folder, "new")

            def busy(self: Path, target: Path) -> Path:
                if self == folder:
                    raise OSError(errno.EBUSY, "Device or resource busy")
                return rename(self, target)

            monkeypatch.setattr(Path, "rename", busy)
        assert (tmp_path / "out" / "weights").read_text() == "old"
        assert os.listdir(tmp_path) == ["out"]

    def test_fills_an_empty_folder(self, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        with staged_folder(tmp_path / "out") as folder:
            (folder / "file").write_text("text")
        assert os.listdir(tmp_path / "out") == ["file"]

    @pytest.mark.parametrize("name", ["notes.txt", "config.json"])
    def test_refuses_a_foreign_folder_before_any_work(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_text("{}")
        with pytest.raises(QuotaError, match="was not written by quota"), staged_folder(tmp_path):
            pytest.fail("the block ran")
        assert os.listdir(tmp_path) == [name]

    def test_refuses_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "out").write_text("text")
        with pytest.raises(QuotaError, match="is a file"), staged_folder(tmp_path / "out"):
            pytest.fail("the block ran")

    @pytest.mark.parametrize(
        "error",
        [
            OSError(errno.ENOSPC, "No space left on device"),
            RuntimeError('I/O error: Os { code: 28, message: "No space left on device" }'),
        ],
        ids=["OSError", "as safetensors says it"],
    )
    def test_full_disk_is_one_line(self, tmp_path: Path, error: Exception) -> None:
        with pytest.raises(QuotaError, match="no space left on the disk"), staged_folder(tmp_path / "out"):
            raise error
        assert os.listdir(tmp_path) == []

    def test_other_errors_of_the_block_pass_through(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError), staged_folder(tmp_path / "out"):
            (tmp_path / "missing").read_text()
