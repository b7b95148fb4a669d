"""Write files and folders so that a reader never sees half of one.

Both helpers write under a temporary name in the target's own folder (same file system, so the final rename
is atomic) and rename when all is there. If anything fails in between, the temporary is removed and the old
target stays as it was.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from quota.errors import QuotaError


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write `content` to `path` (text as UTF-8), replacing an older file in one step.

    Missing parent folders are created; a link is followed; a device or pipe (/dev/stdout) is written to as
    it is. Raises QuotaError if the file cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    target = Path(path)
    if target.is_dir():
        raise QuotaError(f"{target} is a folder; give the name of a file")
    if target.exists() and not target.is_file():
        # A rename would put a plain file in the place of the device.
        target.write_bytes(data)
        return
    target = target.resolve()
    temporary = _temporary_name(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Not tempfile: its files are readable by the owner alone, these follow the umask.
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        raise cannot_write(target, error) from error
    finally:
        _remove(temporary)


@contextlib.contextmanager
def staged_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block ends, or vanishes if the block raises.

    An existing folder is replaced only when it is empty or a checkpoint of ours (`is_checkpoint`); any other
    raises QuotaError before the block runs. A full disk inside the block becomes a one-line QuotaError, other
    exceptions pass through unchanged.
    """
    target = Path(path).resolve()
    refuse_foreign(target)
    temporary = _temporary_name(target)
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise cannot_write(target, error) from error
    try:
        try:
            yield temporary
        except Exception as error:
            if _disk_is_full(error):
                raise cannot_write(target, error) from error
            raise
        replace_folder(temporary, target)
    finally:
        _remove(temporary)


def is_checkpoint(folder: Path) -> bool:
    """Whether `folder` holds a checkpoint written by this package: a config.json with a "quota" key."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "quota" in config


def refuse_foreign(target: Path) -> None:
    """Raise QuotaError unless `staged_folder` may write `target`: for callers with long work to do before it."""
    try:
        if not target.exists():
            return
        if not target.is_dir():
            raise QuotaError(f"{target} is a file; give the name of a folder")
        foreign = any(target.iterdir()) and not is_checkpoint(target)
    except OSError as error:
        raise cannot_write(target, error) from error
    if foreign:
        raise QuotaError(f"{target} is not empty and was not written by quota; give a new folder or empty this one")


def replace_folder(temporary: Path, target: Path) -> None:
    """Rename `temporary` to `target`; an older target is moved aside first and comes back on failure.

    Raises QuotaError for a target that `staged_folder` would refuse.
    """
    # Checked again: what made the folder may have run for minutes.
    refuse_foreign(target)
    older = _temporary_name(target)
    try:
        if target.exists():
            target.rename(older)
        try:
            temporary.rename(target)
        except OSError:
            if older.exists():
                older.rename(target)
            raise
    except OSError as error:
        raise cannot_write(target, error) from error
    _remove(older)


def _temporary_name(target: Path) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")


def _remove(path: Path) -> None:
    """Remove what is there; silent, as it runs while another error is on its way."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def cannot_write(target: Path, error: Exception) -> QuotaError:
    """What to tell the user of an error of the system, or of safetensors, while `target` was written."""
    if _disk_is_full(error):
        return QuotaError(f"no space left on the disk of {target}; free some and run again")
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return QuotaError(f"cannot write {target}: {reason}; choose another place or correct its permissions")


def _disk_is_full(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    # safetensors reports its write errors in an exception of its own, with the system's words inside.
    return "No space left on device" in str(error)
