"""Outcomes measured once and kept, one file each: a table that is interrupted goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quota_lab.ablation.settings import Setting
from quota_lab.ablation.subjects import Subject
from quota_lab.digest import code_digest
from quota_lab.outcomes import kept

# What cannot change an outcome.
_OUTSIDE = frozenset({"bench", "cli", "report", "study"})


@dataclass(frozen=True)
class Cells:
    """Outcomes of one subject in a folder.

    A file is named by what decides its content, the code of this package included: nothing stale is reported.
    """

    folder: Path
    subject: Subject

    def holds(self, setting: Setting | None, seed: int) -> bool:
        return self._file(setting, seed).is_file()

    def outcome(self, setting: Setting | None, seed: int) -> Any:
        """The outcome, measured now if it is not there. QuotaError for a file that cannot be read."""
        facts = self._key(setting, seed)
        return kept(self._file(setting, seed), facts, lambda: self.subject.measure(setting, seed))

    def _key(self, setting: Setting | None, seed: int) -> dict[str, Any]:
        return {
            "code": code_digest(_OUTSIDE),
            "subject": self.subject.name,
            "size": self.subject.size(),
            "setting": None if setting is None else setting.figures(),
            "seed": seed,
        }

    def _file(self, setting: Setting | None, seed: int) -> Path:
        text = json.dumps(self._key(setting, seed), sort_keys=True)
        return self.folder / f"{self.subject.name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
