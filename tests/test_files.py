"""A reader sees a whole file or folder or the old one, whatever goes wrong while it is written."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quota import files
from quota.errors import QuotaError
from quota.files import parse_json, read_bytes, read_json, replace_folder, staged_folder, tidy, write_atomically


class Death(BaseException):
    """The end of the process: nothing that would clean up runs."""


def die_before(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the change number `step` of the disk (touch, rename, exchange, removal) not happen, nor any later one."""
    done = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal done
            done += 1
            if done > step:
                raise Death
            return function(*arguments, **options)

        return call

    for owner, name in ((Path, "touch"), (Path, "rename"), (files, "_exchange"), (files, "_remove")):
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))


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

    @pytest.mark.parametrize("exchange", [True, False], ids=["in one step", "in two steps"])
    @pytest.mark.parametrize("step", range(5))
    def test_death_at_any_step_leaves_the_old_or_the_new(
        self, step: int, exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The process dies before its n-th change of the disk; the next run of anybody puts the rest in order."""
        target = tmp_path / "out"
        with staged_folder(target) as folder:
            checkpoint(folder, "old")
        with monkeypatch.context() as dying:
            if not exchange:
                dying.setattr(files, "_exchange", lambda one, other: False)
            die_before(step, dying)
            temporary = tmp_path / ".out.01234567.partial"
            temporary.mkdir()
            checkpoint(temporary, "new")
            with contextlib.suppress(Death):
                replace_folder(temporary, target)
        assert exchange is False or (target / "weights").read_text() in ("old", "new")
        tidy(target)
        assert (target / "weights").read_text() in ("old", "new")
        assert sorted(os.listdir(target)) == ["config.json", "weights"]
        assert os.listdir(tmp_path) == ["out"]

    def test_what_a_living_process_stages_is_left_alone(self, tmp_path: Path) -> None:
        with staged_folder(tmp_path / "out") as first:
            checkpoint(first, "first")
            with staged_folder(tmp_path / "out") as second:
                checkpoint(second, "second")
        assert (tmp_path / "out" / "weights").read_text() == "first"
        assert os.listdir(tmp_path) == ["out"]

    def test_failing_rename_brings_the_old_checkpoint_back(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with staged_folder(tmp_path / "out") as folder:
            checkpoint(folder, "old")
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
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

    def test_refuses_a_mount_point_before_any_work(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A volume of a container: nothing can be renamed to it."""
        (tmp_path / "out").mkdir()
        monkeypatch.setattr(Path, "is_mount", lambda self: self == tmp_path / "out")
        with pytest.raises(QuotaError, match="is a mount point"), staged_folder(tmp_path / "out"):
            raise AssertionError

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


class TestReading:
    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("{", "not valid JSON"),
            ("[" * 100_000, "nested too deeply"),
            ("1" * 5000, "thousands of digits"),
            (b"\xff\x00", "UTF-8|not valid JSON"),
        ],
    )
    def test_every_reason_is_one_line(self, text: str | bytes, says: str) -> None:
        with pytest.raises(ValueError, match=says) as raised:
            parse_json(text)
        assert "\n" not in str(raised.value)

    def test_an_object_is_wanted(self, tmp_path: Path) -> None:
        (tmp_path / "list.json").write_text("[]")
        with pytest.raises(QuotaError, match=r"list\.json: not a file"):
            read_json(tmp_path / "list.json")

    def test_pipes_devices_and_impossible_names_are_refused_at_once(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        for path, says in {
            tmp_path / "pipe": "a pipe or a device",
            Path("/dev/zero"): "a pipe or a device",
            tmp_path: "a folder",
            tmp_path / ("x" * 300): "too long",
            tmp_path / "zero\0byte": "zero byte",
        }.items():
            with pytest.raises(QuotaError, match=says):
                read_bytes(path)
