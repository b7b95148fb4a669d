"""Hand spoilt files, pictures, questions and command lines to quota, and count what it says.

    python fuzz/inputs.py --seed 0 --cases 100000 --out docs/reliability/inputs.json
    python fuzz/inputs.py --seed 0 --only recipe/17

Case NUMBER of a kind depends on the seed alone. Cases run in child processes, forked from one that has imported
everything; one that dies or hangs is counted and replaced. Every case ends in one of these ways:

    ok            it worked, and the answer is the one that the unspoilt checkpoint gives
    other         it worked, and the answer is another one, of a checkpoint whose author has sealed it so
    refused       one line, at most 300 characters
    traceback     any other exception, or "this is a defect"
    death         the process ended
    time-out      it took more than `--patience` seconds of a processor, or ASLEEP times as many without one
    silent        it worked, the answer is another one, and the manifest was as it had been written

The last four are faults. A spoilt checkpoint has its manifest as it was in one half of the cases (damage), and one that
fits it in the other half (an author that means harm, or an old version).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any, NoReturn

os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "fuzz")]

import mutations  # noqa: E402
import torch  # noqa: E402
from support.tiny_llava import make_model, make_samples, processor  # noqa: E402

import quota  # noqa: E402
from quota.checkpoint.manifest import seal  # noqa: E402
from quota.checkpoint.named import load_model  # noqa: E402
from quota.cli import main as command_line  # noqa: E402
from quota.compress_folder import compress_folder  # noqa: E402
from quota.errors import LONGEST, QuotaError  # noqa: E402
from quota.prompts import answer, build_inputs  # noqa: E402
from quota.samples import Sample, read_samples  # noqa: E402

OUTCOMES = ("ok", "other", "refused", "traceback", "death", "time-out", "silent")
FAULTS = ("traceback", "death", "time-out", "silent")
CASES_A_CHILD = 100
ASLEEP = 10
MEMORY = 6 << 30
"""Bytes of address space beyond those of the parent that a case may ask for."""

WEIGHTS = "model.safetensors"
FILES: dict[str, tuple[str, ...]] = {
    "recipe": ("recipe.json",),
    "measurements": ("measurements.json",),
    "config": ("config.json", "generation_config.json"),
    "manifest": ("manifest.json",),
    "header": (WEIGHTS,),
    "dtype": (WEIGHTS,),
    "shape": (WEIGHTS,),
    "body": (WEIGHTS,),
    "tokenizer": ("tokenizer.json", "tokenizer_config.json"),
    "processor": ("processor_config.json", "chat_template.jinja"),
}
"""Kinds of cases that spoil a checkpoint, and the files of it."""
SOURCE = ("config.json", "generation_config.json", "processor_config.json", "tokenizer.json", WEIGHTS)
"""Files of an original model that are spoilt before it is compressed."""
KINDS = (*FILES, "source", "questions", "picture", "command")


class Bench:
    """A tiny model, compressed and not, what it answers, and what else commands can be given."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.folder = folder = place / "given"
        model, tools, samples = make_model(), processor(), make_samples(3)
        model.save_pretrained(folder / "full")
        tools.save_pretrained(folder / "full")
        quota.compress(model, tools, samples, keep=0.5)
        quota.save_pretrained(model, tools, folder / "small")
        self.picture = folder / "picture.png"
        assert not isinstance(samples[0].image, Path)
        samples[0].image.save(self.picture)
        self.question = samples[0].question
        line = {"image": self.picture.name, "question": self.question, "answer": "two", "task": "count"}
        self.questions = json.dumps(line) + "\n"
        (folder / "questions.jsonl").write_text(self.questions)
        self.tools = tools
        self.expected = self.answer(folder / "small")

    def answer(self, checkpoint: Path) -> str:
        """What a checkpoint says, in 8 words."""
        model, tools, _ = load_model(str(checkpoint))
        return answer(model, tools, Sample(self.picture, self.question), 8)

    def run(self, kind: str, number: int, seed: int, scratch: Path) -> str:
        """Run one case in the empty folder `scratch`; returns its outcome, raises what the case raises."""
        chance = Random(f"{seed}/{kind}/{number}")
        if kind in FILES:
            return self._checkpoint(chance, kind, scratch)
        if kind == "source":
            return self._source(chance, scratch)
        if kind == "questions":
            (scratch / self.picture.name).symlink_to(self.picture)
            (scratch / "questions.jsonl").write_bytes(mutations.json_text(chance, self.questions))
            build_inputs(self.tools, read_samples(scratch)[:2])
            return "ok"
        if kind == "picture":
            (scratch / "picture.png").write_bytes(mutations.picture(chance))
            build_inputs(self.tools, [Sample(scratch / "picture.png", self.question)])
            return "ok"
        return self._command(chance, scratch)

    def _checkpoint(self, chance: Random, kind: str, scratch: Path) -> str:
        name = chance.choice(FILES[kind])
        for file in (self.folder / "small").iterdir():
            os.link(file, scratch / file.name)
        data = (scratch / name).read_bytes()
        spoilt = self._spoil(chance, kind, name, data)
        (scratch / name).unlink()
        (scratch / name).write_bytes(spoilt)
        sealed = kind == "manifest" or chance.random() < 0.5
        if not sealed:
            (scratch / "manifest.json").unlink()
            seal(scratch)
        if kind == "measurements" and chance.random() < 0.5:
            self._told(["rebudget", str(scratch), "--compute", "0.5"], scratch)
            return "silent" if sealed and spoilt != data else "ok"
        if chance.random() < 0.2:
            verify = chance.random() < 0.5
            self._told(["inspect", str(scratch), *(["--verify"] if verify else [])], scratch)
            return "silent" if verify and sealed and kind != "manifest" and spoilt != data else "ok"
        said = self.answer(scratch)
        if said == self.expected:
            return "ok"
        return "silent" if sealed else "other"

    def _source(self, chance: Random, scratch: Path) -> str:
        name = chance.choice(SOURCE)
        shutil.copytree(self.folder / "full", scratch / "full")
        file = scratch / "full" / name
        how = chance.choice(("header", "dtype", "shape", "body")) if name == WEIGHTS else "text"
        file.write_bytes(self._spoil(chance, how, name, file.read_bytes()))
        compress_folder(scratch / "full", scratch / "out", [Sample(self.picture, self.question)], method="paper")
        return "ok"

    @staticmethod
    def _spoil(chance: Random, kind: str, name: str, data: bytes) -> bytes:
        if kind in ("header", "dtype", "shape", "body"):
            return getattr(mutations, kind)(chance, data)
        if name.endswith(".jinja"):
            return mutations.template(chance, data.decode())
        return mutations.json_text(chance, data.decode())

    def _command(self, chance: Random, scratch: Path) -> str:
        shutil.copytree(self.folder, scratch, dirs_exist_ok=True)
        os.mkfifo(scratch / "pipe")
        models = [str(scratch / "small"), str(scratch / "full"), str(scratch), "nobody/nothing", "nothing"]
        files = [
            str(scratch / name) for name in ("picture.png", "questions.jsonl", "", "pipe", "nothing.png", "x" * 300)
        ]
        words = mutations.command(
            chance, models, [*files, "/dev/zero"], [str(scratch / "new"), str(scratch / "picture.png")]
        )
        return self._told(words, scratch)

    def _told(self, words: list[str], scratch: Path) -> str:
        """Run a command in `scratch`; "ok", or what it says raised as QuotaError, RuntimeError if that is no line."""
        os.chdir(scratch)
        errors = io.StringIO()
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
                command_line(words)
        except SystemExit as ended:
            code = ended.code
        finally:
            os.chdir(self.folder)
        told = [line for line in errors.getvalue().splitlines() if line.startswith("quota:")]
        if "(this is a defect" in errors.getvalue() or "Traceback" in errors.getvalue():
            raise RuntimeError(f"{words}: {told[-1] if told else errors.getvalue()[-300:]}")
        if code in (0, None):
            return "ok"
        if code == 2 and not told:
            # Without a command it shows its help.
            return "refused"
        if len(told) != 1:
            raise RuntimeError(f"{words}: code {code} and {len(told)} lines")
        raise QuotaError(told[0].removeprefix("quota: "))


def outcome(bench: Bench, kind: str, number: int, seed: int) -> tuple[str, str]:
    """How a case ends, and what it says."""
    scratch = Path(tempfile.mkdtemp(dir=bench.place))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return bench.run(kind, number, seed, scratch), ""
    except QuotaError as error:
        said = str(error)
        one_line = said and "\n" not in said and len(said) <= LONGEST and "this is a defect" not in said
        return "refused" if one_line else "traceback", said
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return "traceback", f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def child(bench: Bench, cases: list[tuple[str, int]], seed: int, pipe: int) -> NoReturn:
    """Run cases one after the other, and tell each outcome in a line."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for kind, number in cases:
        found = outcome(bench, kind, number, seed)
        os.write(pipe, (json.dumps([found[0], found[1][:600]]) + "\n").encode())
    os._exit(0)


def told(bench: Bench, cases: list[tuple[str, int]], seed: int, patience: float) -> list[tuple[str, str]]:
    """The outcomes of `cases` as one child tells them, up to the one that it dies or hangs in, which is the last."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reading)
        child(bench, cases, seed, writing)
    os.close(writing)
    found: list[tuple[str, str]] = []
    waiting, hung, since = b"", False, (0.0, time.monotonic())
    while len(found) < len(cases):
        if not select.select([reading], [], [], 1)[0]:
            # By its own time: on a busy machine it may hardly get any. One that sleeps for long hangs as well.
            hung = worked(process) - since[0] > patience or time.monotonic() - since[1] > ASLEEP * patience
            if not hung:
                continue
            os.kill(process, signal.SIGKILL)
        since = worked(process), time.monotonic()
        if not (data := os.read(reading, 1 << 16)):
            break
        waiting += data
        *lines, waiting = waiting.split(b"\n")
        found += [tuple(json.loads(line)) for line in lines]
    os.close(reading)
    _, status = os.waitpid(process, 0)
    if len(found) < len(cases):
        found.append(("time-out", "") if hung else ("death", f"signal {os.waitstatus_to_exitcode(status)}"))
    return found


def worked(process: int) -> float:
    """Seconds that the processor has spent on a process."""
    user, system = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def campaign(bench: Bench, cases: list[tuple[str, int]], seed: int, patience: float, seconds: float) -> dict[str, Any]:
    """Run cases until they or the seconds are over; counts by kind and outcome, and the faults."""
    began = time.monotonic()
    counts = {kind: Counter[str]() for kind in KINDS}
    faults: list[dict[str, str]] = []
    done = 0
    while done < len(cases) and time.monotonic() - began < seconds:
        found = told(bench, cases[done : done + CASES_A_CHILD], seed, patience)
        for (kind, number), (how, said) in zip(cases[done:], found, strict=False):
            counts[kind][how] += 1
            if how in FAULTS:
                faults.append({"case": f"{kind}/{number}", "outcome": how, "said": said})
                print(f"{kind}/{number}: {how} {said}", file=sys.stderr, flush=True)
        done += len(found)
    return {
        "version": quota.__version__,
        "seed": seed,
        "cases": done,
        "seconds": round(time.monotonic() - began),
        "counts": {kind: {how: counts[kind][how] for how in OUTCOMES} for kind in KINDS if counts[kind]},
        "faults": faults,
    }


def table(result: dict[str, Any]) -> str:
    """The counts, a line for each kind, in Markdown."""
    rows = [["kind", "cases", *OUTCOMES]]
    rows += [[kind, sum(found.values()), *found.values()] for kind, found in result["counts"].items()]
    totals = [sum(found[how] for found in result["counts"].values()) for how in OUTCOMES]
    rows.append(["all", sum(totals), *totals])
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|---|" + "---:|" * (len(rows[0]) - 1), *lines[1:]])


def cases_of(count: int, kinds: tuple[str, ...]) -> list[tuple[str, int]]:
    """`count` cases, all kinds in turn."""
    return [(kinds[index % len(kinds)], index // len(kinds)) for index in range(count)]


def main() -> None:
    """The command line; ends with code 1 if there was a fault."""
    parser = argparse.ArgumentParser(description="Hand spoilt inputs to quota, and count what it says.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="end after so many, however many cases are left"
    )
    parser.add_argument("--patience", type=float, default=60, help="seconds of a processor that one case may take")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--only", metavar="KIND/NUMBER", help="one case, in this process, with its traceback")
    parser.add_argument("--out", type=Path, help="write the result here, as JSON, and the table beside it")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="quota-fuzz-") as name:
        bench = Bench(Path(name))
        if given.only:
            kind, _, number = given.only.partition("/")
            scratch = Path(tempfile.mkdtemp(dir=bench.place))
            print(bench.run(kind, int(number), given.seed, scratch))
            return
        cases = cases_of(given.cases, tuple(given.kinds))
        result = campaign(bench, cases, given.seed, given.patience, given.seconds)
    print(f"{result['cases']} cases of seed {given.seed} in {result['seconds']} s\n\n{table(result)}")
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(result, indent=2) + "\n")
        given.out.with_suffix(".md").write_text(table(result) + "\n")
    sys.exit(1 if result["faults"] else 0)


if __name__ == "__main__":
    main()
