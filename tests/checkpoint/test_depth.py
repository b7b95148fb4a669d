"""A configuration that asks for layers without end is refused before one is built."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from quota.checkpoint.depth import refuse_endless
from quota.checkpoint.named import load_model
from quota.compress_folder import compress_folder
from quota.errors import QuotaError


@pytest.mark.parametrize("part", ["vision_config", "text_config"])
def test_layers_without_end_are_refused(part: str, full_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(full_folder, source)
    refuse_endless(source)
    config = json.loads((source / "config.json").read_text())
    config[part]["num_hidden_layers"] = 2**63
    (source / "config.json").write_text(json.dumps(config))
    for use in (lambda: load_model(str(source)), lambda: compress_folder(source, tmp_path / "out", [])):
        with pytest.raises(QuotaError, match="num_hidden_layers of 9223372036854775808, but there are"):
            use()
