"""`quota bench vllm` on few questions: the bars that it is there to hold."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.engines import suite

from quota_lab.bench.tables import served_table

pytest.importorskip("vllm", reason="run by `make test-vllm`")


def test_answers_kept_tokens_bytes_and_requests_at_once(reference_folder: Path) -> None:
    from quota_lab.bench.served import bench_vllm

    found = bench_vllm(reference_folder, suite(6))
    assert found.equal == found.questions == 6
    assert found.kept is not None
    assert found.kept >= 0.99
    assert found.bytes_in_vllm <= 1.1 * found.bytes_in_quota
    assert found.at_once >= 3 * found.at_once_dense > 0
    assert served_table(found).row_count == 4
