"""A table as files: what they say of the code that made it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quota.version import __version__
from quota_lab.digest import code_digest
from quota_lab.study import report
from quota_lab.study.figures import figure
from quota_lab.study.keys import OUTSIDE
from quota_lab.study.report import read_table, write_report
from quota_lab.study.run import Row, Study
from quota_lab.study.tables import FULL, Table
from quota_lab.study.variants import Variant
from quota_lab.study.workshop import Outcome

OUTCOME = Outcome({"one": [True, False]}, [1], [4, 2], 0.75)
TABLE = Table("A table", {FULL: Variant(scheme=None)}, FULL)


def write(folder: Path) -> tuple[dict, str]:
    rows = [Row(FULL, figure([OUTCOME], [OUTCOME], None), None)]
    write_report(folder, "some", "quota study some", TABLE, Study(seeds=1), rows)
    assert read_table(folder / "some.json")["title"] == "A table"
    return json.loads((folder / "some.json").read_text()), (folder / "some.md").read_text()


def test_a_table_names_the_code_that_made_it(tmp_path: Path) -> None:
    found, page = write(tmp_path)
    code = code_digest(OUTSIDE)[:12]
    assert (found["quota"], found["code"]) == (__version__, code)
    assert f"\nMeasured by quota {__version__}, code {code}.\n" in page


def test_it_is_the_code_that_sealed_questions_are_claimed_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(report, "code_digest", lambda without: asked.append(without) or "0123456789abcdef")
    found, page = write(tmp_path)
    assert found["code"] == "0123456789ab" and "code 0123456789ab.\n" in page
    assert set(asked) == {OUTSIDE}
