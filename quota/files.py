"""Write files and folders so that a reader never sees half of one, and read JSON that others have written.

Both helpers write under a temporary name in the target's own folder (same file system, so the final rename
is atomic) and rename when all is there. If anything fails in between, the temporary is removed and the old
target stays as it was. A folder takes the place of an older one by exchanging their names, in one step where the file
system can do that, else in two. What a run that was killed has left beside the target is put in order by the next one
(`tidy`):

    .OUT.01234567.partial           half of a folder, or an older OUT on its way out
    .replaced                       in a folder: it is the older of two, and goes, unless OUT is missing
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quota.errors import QuotaError

_REPLACED = ".replaced"
"""A file that marks the older of two folders while they change places."""
_AT_CURRENT_FOLDER, _EXCHANGE = -100, 2
"""Of Linux, for renameat2."""


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write `content` to `path` (text as UTF-8), replacing an older file in one step.

    Missing parent folders are created; a link is followed; a device, a pipe, or what this process has open
    (/dev/stdout) is written to as it is. Raises QuotaError if the file cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    target = Path(path)
    if (descriptor := _descriptor(target)) is not None:
        sys.stdout.flush()
        with open(os.dup(descriptor), "wb") as file:
            file.write(data)
        return
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


def _descriptor(path: Path) -> int | None:
    """The number under which this process has `path` open, which may be a file that the shell sends it to."""
    if str(path) in ("/dev/stdout", "/dev/stderr"):
        return 1 if path.name == "stdout" else 2
    found = re.fullmatch(r"/(?:dev|proc/self)/fd/(\d+)", str(path))
    return int(found[1]) if found else None


@contextlib.contextmanager
def staged_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block ends, or vanishes if the block raises.

    An existing folder is replaced only when it is empty or a checkpoint of ours (`is_checkpoint`); any other
    raises QuotaError before the block runs. A full disk inside the block becomes a one-line QuotaError, other
    exceptions pass through unchanged.
    """
    target = Path(path).resolve()
    refuse_foreign(target)
    tidy(target)
    temporary = _temporary_name(target)
    try:
        temporary.mkdir(parents=True)
        # Tells `tidy` that somebody is at work here; the system takes it away from a process that ends.
        held = os.open(temporary, os.O_RDONLY)
        fcntl.flock(held, fcntl.LOCK_SH)
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
        os.close(held)


def is_checkpoint(folder: Path) -> bool:
    """Whether `folder` holds a checkpoint written by this package: a config.json with a "quota" key."""
    try:
        return "quota" in read_json(folder / "config.json")
    except QuotaError:
        return False


def refuse_foreign(target: Path) -> None:
    """Raise QuotaError unless `staged_folder` may write `target`: for callers with long work to do before it."""
    try:
        if not target.exists():
            return
        if not target.is_dir():
            raise QuotaError(f"{target} is a file; give the name of a folder")
        if target.is_mount():
            raise QuotaError(f"{target} is a mount point, which nothing can replace; give a folder in it")
        foreign = any(target.iterdir()) and not is_checkpoint(target)
    except OSError as error:
        raise cannot_write(target, error) from error
    if foreign:
        raise QuotaError(f"{target} is not empty and was not written by quota; give a new folder or empty this one")


def replace_folder(temporary: Path, target: Path) -> None:
    """Rename `temporary` to `target`; an older target is gone afterwards, or still there on failure.

    Raises QuotaError for a target that `staged_folder` would refuse.
    """
    # Checked again: what made the folder may have run for minutes.
    refuse_foreign(target)
    older = _temporary_name(target)
    try:
        if not target.exists():
            temporary.rename(target)
            return
        (target / _REPLACED).touch()
        if _exchange(temporary, target):
            # Out of the way in one step: half removed, it might be taken for half finished.
            with contextlib.suppress(OSError):
                temporary.rename(older)
        else:
            target.rename(older)
            try:
                temporary.rename(target)
            except OSError:
                older.rename(target)
                raise
    except OSError as error:
        (target / _REPLACED).unlink(missing_ok=True)
        raise cannot_write(target, error) from error
    _remove(older)
    _remove(temporary)


def tidy(target: Path, *working: Path) -> None:
    """Put in order what killed runs have left beside `target`; `working` are more folders that it may have been in.

    An older target that was moved aside comes back if nothing has taken its place. Folders that a living process writes
    to stay.
    """
    with contextlib.suppress(OSError):
        (target / _REPLACED).unlink(missing_ok=True)
        for folder in (*working, *target.parent.glob(f".{glob.escape(target.name)}.????????.partial")):
            if not folder.is_dir():
                continue
            if (folder / _REPLACED).exists() and not target.exists():
                folder.rename(target)
                (target / _REPLACED).unlink()
            elif (folder / _REPLACED).exists() or (folder not in working and not _in_use(folder)):
                _remove(folder)


def _in_use(folder: Path) -> bool:
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(opened)
    return False


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change names in one step; False where the system or the file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    done = rename(_AT_CURRENT_FOLDER, os.fsencode(one), _AT_CURRENT_FOLDER, os.fsencode(other), _EXCHANGE)
    return done == 0


def parse_json(text: str | bytes) -> Any:
    """What JSON says. ValueError, with a reason of one line, for all that cannot be read as such."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON ({error.msg}, line {error.lineno}, column {error.colno})") from None
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("not text in UTF-8") from None
    except ValueError:
        # Python's limit on the digits of an integer.
        raise ValueError("a number of thousands of digits") from None


def read_json(file: Path, kind: str = "file") -> dict[str, Any]:
    """The JSON object in `file`, which should be a `kind`. QuotaError, naming it, if it is anything else."""
    data = read_bytes(file)
    try:
        found = parse_json(data)
    except ValueError as error:
        raise QuotaError(f"{file}: not a whole {kind} ({error}); restore it") from None
    if not isinstance(found, dict):
        raise QuotaError(f"{file}: not a {kind} (a JSON object); restore it")
    return found


def sha256(file: Path) -> str:
    """SHA-256 (hex) of a file. QuotaError if it cannot be read."""
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise QuotaError(f"cannot read {file}: {error.strerror}; correct its path or permissions") from None


def read_bytes(file: Path) -> bytes:
    """All of an ordinary file. QuotaError if it cannot be read, or is a pipe or device, which might never end."""
    check_file(file)
    try:
        return file.read_bytes()
    except OSError as error:
        raise QuotaError(f"cannot read {file}: {error.strerror}; correct its permissions") from None


def check_file(file: Path) -> None:
    """QuotaError unless `file` is an ordinary file, or a link to one."""
    try:
        kind = file.stat().st_mode
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "a name with a zero byte"
        raise QuotaError(f"cannot read {file}: {reason}; give the name of a file") from None
    if not stat.S_ISREG(kind):
        what = "a folder" if stat.S_ISDIR(kind) else "a pipe or a device"
        raise QuotaError(f"{file} is {what}; give the name of an ordinary file")


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
