"""All that a report tells of a checkpoint: what its files say, and what a suite says of it, if there is one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quota.checkpoint.described import described
from quota.checkpoint.manifest import MANIFEST_FILE, Entry, read_manifest
from quota.progress import Steps, silent
from quota.report.inspection import Inspection, inspect_path
from quota.report.page.asked import Asked, Suite, ask
from quota.report.page.parts import PartBytes, part_bytes


@dataclass(frozen=True)
class Report:
    """What the page is made of."""

    name: str
    """Of the checkpoint's folder."""
    architecture: str
    inspection: Inspection
    digests: dict[str, Entry]
    """File -> what the manifest says of it; empty for a checkpoint without one."""
    parts: dict[str, PartBytes]
    asked: Asked | None
    """None if there was no suite."""


def gather(
    out: Path,
    suite: Suite | None = None,
    baseline: str | None = None,
    batch_size: int | None = None,
    progress: Steps = silent,
) -> Report:
    """Read the checkpoint in `out`, and ask it the questions of `suite`; without one, no model is loaded.

    Raises QuotaError for a folder that quota has not written, and as `ask` does.
    """
    inspection, found = inspect_path(out), described(out)
    manifest = out / MANIFEST_FILE
    return Report(
        out.resolve().name,
        next(iter(found.config.architectures or []), ""),
        inspection,
        read_manifest(manifest) if manifest.exists() else {},
        part_bytes(out, found),
        None if suite is None else ask(out, suite, baseline, batch_size, progress),
    )
