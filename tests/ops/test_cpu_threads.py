"""How many threads a kernel gets, that their number and order change no bit, and whose threads they are."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from support.instruction_sets import needs_library
from torch import Tensor

from quota.ops.cpu import CpuBackend
from quota.ops.cpu import threads as module
from quota.ops.cpu.threads import processors, threads


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def information(seed: int = 0, tokens: int = 300, chosen: int = 100) -> Tensor:
    """A kernel with several phases, and work enough for threads in the first; with many tokens in the last too."""
    hidden = torch.randn(2, tokens, 64, generator=torch.Generator().manual_seed(seed))
    return CpuBackend().information(hidden, torch.ones(2, tokens).bool(), torch.tensor([chosen, chosen // 2]), 0.01)


def container(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    return folder


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("0::/a/b", {"cpu.max": "max 100000", "a/cpu.max": "100000 50000", "a/b/cpu.max": "300000 100000"}, 2.0),
        # A path of the host's, seen from inside.
        ("0::/docker/123", {"cpu.max": "50000 100000"}, 0.5),
        ("4:cpu,cpuacct:/", {"cpu,cpuacct/cpu.cfs_quota_us": "200000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 2.0),
        ("1:cpu:/a\n0::/", {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, None),
        ("3:cpuset:/", {"cpuset/cpu.cfs_quota_us": "1", "cpuset/cpu.cfs_period_us": "100000"}, None),
        ("0::/", {"cpu.max": ""}, None),
        ("0::/", {"cpu.max": "100000 0"}, None),
        ("no such thing", {}, None),
        ("", {}, None),
    ],
)
def test_a_containers_quota_is_read(groups: str, files: dict[str, str], expected: float | None, tmp_path: Path) -> None:
    root = container(tmp_path / "mounted", files)
    (tmp_path / "groups").write_text(groups + "\n")
    assert processors(tmp_path / "groups", root) == expected


def test_without_control_groups_there_is_no_quota(tmp_path: Path) -> None:
    assert processors(tmp_path / "missing", tmp_path) is None


@pytest.mark.parametrize(("share", "expected"), [(None, 5), (0.5, 1), (1.5, 2), (8.0, 5)])
def test_threads_are_torchs_within_the_quota(
    share: float | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(5)
    monkeypatch.setattr(module, "processors", lambda groups, root: share)
    module._limit.cache_clear()
    try:
        assert threads() == expected
    finally:
        module._limit.cache_clear()


@needs_library
def test_the_number_of_threads_may_change_between_calls_and_changes_no_bit() -> None:
    torch.set_num_threads(1)
    expected, many = information(), information(tokens=2100, chosen=510)
    for number in (2, 5, 1, 3, 2):
        torch.set_num_threads(number)
        assert torch.equal(information(), expected)
    torch.set_num_threads(3)
    assert torch.equal(information(tokens=2100, chosen=510), many)


@needs_library
def test_many_threads_call_at_once() -> None:
    torch.set_num_threads(2)
    expected = [information(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            assert all(map(torch.equal, pool.map(information, range(8)), expected))


def alone(code: str) -> str:
    """What a Python of its own prints that runs it behind this module's names, on two threads."""
    before = "import os, sys, torch\nfrom ops.test_cpu_threads import information\ntorch.set_num_threads(2)\n"
    tests = str(Path(__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", before + code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_library
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_child_made_by_fork_waits_for_no_thread_of_its_parent() -> None:
    code = """
expected, child = information(), os.fork()
if child == 0:
    import signal
    signal.alarm(30)
    os._exit(0 if torch.equal(information(), expected) else 1)
print(os.waitpid(child, 0)[1])
"""
    assert alone(code) == "0\n"


@needs_library
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_kernels_run_on_torchs_own_threads() -> None:
    code = """
def count():
    return len(os.listdir("/proc/self/task"))
before = count()
(torch.ones(10**7) + 1).sum()
with_torchs = count()
information()
print(with_torchs - before, count() - with_torchs)
"""
    assert alone(code) == "1 0\n"
