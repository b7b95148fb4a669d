"""The manifest of a checkpoint: how long each of its files is and what it holds, so that a flipped bit is found.

    manifest.json     {"version": 1, "files": {"config.json": {"bytes": 1486, "sha256": "..."}, ...}}

It is the last file to be written, and names every other one that a loader may read (not the card, which changes).
What is checked when:

    on loading             all sizes; what the small files hold, and the weights up to `HASHED_ON_LOAD` together
    `quota inspect --verify`       everything, and that no file has joined them
    QUOTA_VERIFY=all               the same as by --verify, on every loading

It says that the files are those that were written, not who has written them: it is a checksum and no signature.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from transformers.utils.hub import CHAT_TEMPLATE_DIR

from quota.errors import QuotaError
from quota.files import check_file, read_json, sha256, write_atomically

MANIFEST_FILE = "manifest.json"
ENVIRONMENT_VARIABLE = "QUOTA_VERIFY"

HASHED_ON_LOAD = 2_000_000_000
"""Bytes of weights. At 0.7 to 2 GB/s and core, one to three seconds: a small part of loading them."""
_SMALL = 50_000_000
_VERSION = 1
_READ = (".safetensors", ".json", ".jinja", ".model", ".txt")
"""What a loader may read. Pictures, licences and the like may join a checkpoint."""


@dataclass(frozen=True)
class Entry:
    """What the manifest says of a file."""

    bytes: int
    sha256: str


def seal(folder: Path) -> None:
    """Write the manifest of the checkpoint in `folder`, over an older one."""
    _write(folder, _entries(folder, sorted(_read_by_loaders(folder))))


def reseal(folder: Path, changed: Iterable[str]) -> None:
    """Let the manifest in `folder`, if there is one, say what the files `changed` hold now.

    What it says of all others stays: damage to them is still damage.
    """
    if (folder / MANIFEST_FILE).exists():
        _write(folder, read_manifest(folder / MANIFEST_FILE) | _entries(folder, list(changed)))


def _read_by_loaders(folder: Path) -> Iterator[str]:
    """Names, from `folder`, of what a loader may read: files there, and more chat templates in their own folder."""
    for file in (*folder.glob("*"), *(folder / CHAT_TEMPLATE_DIR).glob("*")):
        if file.suffix in _READ and file != folder / MANIFEST_FILE:
            yield file.relative_to(folder).as_posix()


def _entries(folder: Path, names: Sequence[str]) -> dict[str, Entry]:
    files = [folder / name for name in names]
    found = zip(names, files, _digests(files), strict=True)
    return {name: Entry(file.stat().st_size, digest) for name, file, digest in found}


def _write(folder: Path, entries: Mapping[str, Entry]) -> None:
    files = {name: asdict(entry) for name, entry in sorted(entries.items())}
    write_atomically(folder / MANIFEST_FILE, json.dumps({"version": _VERSION, "files": files}, indent=2) + "\n")


def verify(folder: Path) -> int:
    """Compare every file of the checkpoint in `folder` with its manifest; returns how many there are.

    QuotaError, naming the first file, for one that is missing, changed, or not in the manifest though a loader might
    read it, and for a folder without a manifest.
    """
    if not (folder / MANIFEST_FILE).exists():
        raise QuotaError(f"{folder} has no {MANIFEST_FILE} to verify it by; compress again to have one")
    entries = read_manifest(folder / MANIFEST_FILE)
    if joined := sorted(set(_read_by_loaders(folder)) - entries.keys()):
        raise QuotaError(
            f"{folder / joined[0]} is not in {MANIFEST_FILE}; remove it, or save with quota.save_pretrained"
        )
    _compare(folder, entries, entries)
    return len(entries)


def verify_loading(folder: Path, manifest: Path | None, present: Iterable[str]) -> None:
    """What is cheap of `verify`, for the files `present` in `folder`; the manifest may be elsewhere (None: nowhere).

    Errors as `verify`. A checkpoint without a manifest, as earlier versions wrote it, gets a warning.
    """
    if manifest is None:
        warnings.warn(
            f"{folder} has no {MANIFEST_FILE}, so damage to its files would not be seen; compress again to have one",
            stacklevel=2,
        )
        return
    entries = read_manifest(manifest)
    everything = os.environ.get(ENVIRONMENT_VARIABLE) == "all"
    known = {name: entries[name] for name in present if name in entries}
    weights = [name for name in known if name.endswith(".safetensors")]
    if unknown := sorted(name for name in present if name.endswith(".safetensors") and name not in entries):
        raise QuotaError(f"{folder / unknown[0]} is not in {MANIFEST_FILE}; copy the checkpoint again")
    light = everything or sum(known[name].bytes for name in weights) <= HASHED_ON_LOAD
    hashed = {name for name, entry in known.items() if everything or (light if name in weights else _small(entry))}
    _compare(folder, known, hashed)


def read_manifest(file: Path) -> dict[str, Entry]:
    """Name -> entry. QuotaError for anything that is no manifest of this version."""
    found = read_json(file, "manifest")
    if found.get("version") != _VERSION:
        raise QuotaError(f"{file}: version {found.get('version')!r}, this quota reads {_VERSION}; update quota")
    files = found.get("files")
    if not isinstance(files, dict) or not all(_is_entry(name, entry) for name, entry in files.items()):
        raise QuotaError(f"{file}: not a manifest; copy the checkpoint again")
    return {name: Entry(entry["bytes"], entry["sha256"]) for name, entry in files.items()}


def _is_entry(name: str, entry: Any) -> bool:
    # Nothing may lead out of the folder.
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or str(path) != name or not isinstance(entry, dict):
        return False
    return type(entry.get("bytes")) is int and type(entry.get("sha256")) is str


def _small(entry: Entry) -> bool:
    return entry.bytes <= _SMALL


def _compare(folder: Path, entries: Mapping[str, Entry], hashed: Iterable[str]) -> None:
    """QuotaError for the first file that is not as it was written; of those not `hashed` only the size is compared."""
    advice = f"copy the checkpoint again (or, if you changed it on purpose, delete {MANIFEST_FILE})"
    for name, entry in entries.items():
        file = folder / name
        if not file.exists():
            raise QuotaError(f"{file} is missing; {advice}")
        check_file(file)
        if (size := file.stat().st_size) != entry.bytes:
            raise QuotaError(f"{file} is not whole: {size} bytes, {entry.bytes} were written; {advice}")
    names = sorted(hashed)
    for name, digest in zip(names, _digests([folder / name for name in names]), strict=True):
        if digest != entries[name].sha256:
            raise QuotaError(f"{folder / name} is damaged: it does not hold what was written; {advice}")


def _digests(files: list[Path]) -> list[str]:
    """SHA-256 of each, several at once: hashing lets other threads run."""
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(sha256, files))
