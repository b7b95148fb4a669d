from __future__ import annotations

from pathlib import Path

import pytest
from support.tiny_testbed import make_photos

from quota_lab.testbeds.vlm.photos import Photos


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of every kind."""
    return make_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="session")
def photos(folder: Path) -> Photos:
    return Photos(folder)
