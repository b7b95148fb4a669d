"""Calibration over several processes: the files of one, whoever dies on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from support.tiny_llava import make_model, make_samples, processor

from quota.compress_folder import finished_blocks
from quota.errors import QuotaError
from quota.ranks import ALONE, Ranks

ROOT = Path(__file__).parents[1]
QUESTIONS = 11
"""An odd number, and more than one batch of those that drops are measured on."""


def test_one_process_is_its_own_sum() -> None:
    own = torch.ones(3, dtype=torch.float64)
    assert ALONE.total(own) is own
    assert ALONE.gather([2.0, 1.0]) == [2.0, 1.0]
    assert ALONE.told(2, lambda: (4.0, 5.0)) == [4.0, 5.0]
    assert (ALONE.first, ALONE.sent) == (True, 0)


def test_every_sample_is_in_one_share() -> None:
    samples = list(range(7))
    shares = [Ranks(rank, 3).share(samples) for rank in range(3)]
    assert shares == [[0, 3, 6], [1, 4], [2, 5]]
    with pytest.raises(QuotaError, match="3 ranks need as many samples, got 2; start fewer ranks"):
        Ranks(0, 3).share([1, 2])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, and questions for it."""
    folder = tmp_path_factory.mktemp("ranks")
    make_model().save_pretrained(folder / "model")
    processor().save_pretrained(folder / "model")
    (folder / "questions").mkdir()
    lines = []
    for number, sample in enumerate(make_samples(QUESTIONS)):
        [picture] = sample.pictures()
        picture.save(folder / "questions" / f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png", "question": sample.question}))
    (folder / "questions" / "questions.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def alone(source: Path) -> Path:
    """What one process writes."""
    begun = start(0, compress(source, source / "alone"))
    assert ended(begun) == (0, [])
    return source / "alone"


def compress(source: Path, out: Path, samples: int = QUESTIONS) -> list[str]:
    questions = ["--calibration", str(source / "questions"), "--samples", str(samples)]
    return ["-m", "quota", "compress", str(source / "model"), str(out), *questions]


def start(ranks: int, command: list[str]) -> subprocess.Popen[str]:
    """`command` by so many ranks of torchrun, or without it."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks else []
    return subprocess.Popen(
        [sys.executable, *torchrun, *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )


def ended(begun: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Its exit code, and what quota said was wrong."""
    _, errors = begun.communicate(timeout=300)
    return begun.returncode, [line for line in errors.splitlines() if line.startswith("quota: ")]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def pid_of(rank: int, begun: subprocess.Popen[str]) -> int:
    [children] = (file.read_text() for file in Path(f"/proc/{begun.pid}/task/{begun.pid}").glob("children"))
    wanted = f"\0RANK={rank}\0".encode()
    [found] = [int(child) for child in children.split() if wanted in Path(f"/proc/{child}/environ").read_bytes()]
    return found


@pytest.mark.slow
def test_two_ranks_write_the_files_of_one_process(source: Path, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / alone.name
    assert ended(start(2, compress(source, out))) == (0, [])
    assert contents(out) == contents(alone)
    assert [file.name for file in tmp_path.iterdir()] == [out.name]


@pytest.mark.slow
@pytest.mark.parametrize("dead", [0, 1])
def test_a_rank_that_dies_ends_all_in_one_line_and_the_same_command_goes_on(
    dead: int, source: Path, alone: Path, tmp_path: Path
) -> None:
    out = tmp_path / alone.name
    begun = start(2, compress(source, out))
    while finished_blocks(out) < 4:
        assert begun.poll() is None
        time.sleep(0.01)
    os.kill(pid_of(dead, begun), signal.SIGKILL)
    code, said = ended(begun)
    assert code == 1
    [line] = said
    assert "the same command goes on" in line
    assert not out.exists()
    finished = finished_blocks(out)
    assert finished >= 4
    if dead:
        # Even with another number of ranks.
        assert ended(start(3, compress(source, out))) == (0, [])
        assert contents(out) == contents(alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "command", "message"),
    [
        pytest.param(["-m", "quota"], "doctor", "only `compress` shares its work among ranks", id="another command"),
        pytest.param(
            [str(ROOT / "tests/support/unlike.py")],
            "compress",
            "rank 1 has other threads than rank 0",
            id="unlike ranks",
        ),
    ],
)
def test_what_ranks_cannot_do_is_said(
    program: list[str], command: str, message: str, source: Path, tmp_path: Path
) -> None:
    given = compress(source, tmp_path / "out")[3:] if command == "compress" else []
    code, said = ended(start(2, [*program, command, *given]))
    assert code == 1
    assert message in said[0]
    assert list(tmp_path.iterdir()) == []
