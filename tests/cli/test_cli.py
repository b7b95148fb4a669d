"""The command line as a user meets it: what it prints, what it leaves behind, how it fails."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.commands import call
from support.tiny_llava import make_samples

from quota.checkpoint.named import load_model
from quota.cli import questions
from quota.cli.questions import LONGEST_ANSWER
from quota.prompts import answer
from quota.pruning.recipe import PruningRecipe
from quota.samples import Sample, fingerprint, read_samples
from quota.version import __version__

pytestmark = pytest.mark.slow


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    [sample] = make_samples(1, seed=9)
    file = tmp_path / "picture.png"
    assert not isinstance(sample.image, Path)
    sample.image.save(file)
    return file


def test_compress_inspect_eval_and_run(
    full_folder: Path, suite_folder: Path, tmp_path: Path, picture: Path, capsys
) -> None:
    out, figures = tmp_path / "small", tmp_path / "figures.json"
    options = ("--calibration", suite_folder, "--samples", 4, "--keep", 0.5, "--seed", 3)
    assert call("compress", full_folder, out, *options, "--json", figures) == 0
    recipe = PruningRecipe.load(out / "recipe.json")
    assert (recipe.keep, recipe.samples, recipe.seed) == (0.5, 4, 3)
    assert json.loads(figures.read_text())["recipe"] == recipe.model_dump(mode="json")
    assert "W4A4KV4" in capsys.readouterr().out

    assert call("inspect", out, "--json", figures) == 0
    assert json.loads(figures.read_text())["quantized_layers"] > 0
    assert call("inspect", out / "recipe.json") == 0
    assert "50.0%" in capsys.readouterr().out

    assert call("eval", out, "--suite", suite_folder, "--limit", 2, "--json", figures) == 0
    measured = json.loads(figures.read_text())
    assert set(measured) == {"accuracy", "average", "interval", "questions", "tokens_per_second", "backends"}
    assert measured["questions"] == 4 and set(measured["accuracy"]) == {"easy", "hard"}
    assert "majority" in capsys.readouterr().out

    assert call("eval", out, "--suite", suite_folder, "--baseline", full_folder, "--json", figures) == 0
    measured = json.loads(figures.read_text())
    share = f"{measured['retention']:.1%}"
    assert measured["retention_interval"][0] <= measured["retention"] <= measured["retention_interval"][1]
    assert share in capsys.readouterr().out
    assert f"- **Retention: {share}** of the score of full (95% interval" in (out / "README.md").read_text()

    assert call("run", out, "--image", picture, "what is this") == 0
    model, processor, _ = load_model(str(out))
    assert capsys.readouterr().out.strip() == answer(model, processor, Sample(picture, "what is this"), LONGEST_ANSWER)


def test_it_says_its_version(capsys) -> None:
    assert call("--version") == 0
    assert capsys.readouterr().out == f"quota {__version__}\n"


def test_the_seed_draws_the_calibration_samples(full_folder: Path, suite_folder: Path, tmp_path: Path) -> None:
    drawn = {}
    for name, seed in {"a": 1, "b": 1, "c": 2}.items():
        options = ("--calibration", suite_folder / "questions.jsonl", "--samples", 3, "--seed", seed)
        assert call("compress", full_folder, tmp_path / name, *options) == 0
        drawn[name] = PruningRecipe.load(tmp_path / name / "recipe.json").calibration_fingerprint
    assert drawn["a"] == drawn["b"] != drawn["c"]
    assert drawn["a"] != fingerprint(read_samples(suite_folder)[:3])


def test_rebudget_and_what_budgets_buy(quota_folder: Path, tmp_path: Path, capsys) -> None:
    out, figures, plot = tmp_path / "small", tmp_path / "figures.json", tmp_path / "frontier.png"
    shutil.copytree(quota_folder, out)
    assert call("rebudget", out, "--kv-bytes", 5000, "--json", figures) == 0
    written = json.loads(figures.read_text())
    assert written["chosen"]["kv_bytes"] <= 5000
    assert PruningRecipe.load(out / "recipe.json").model_dump(mode="json") == written["recipe"]
    told = capsys.readouterr()
    assert "a new recipe in" in told.err and "KV cache of a typical prompt" in told.out

    assert call("inspect", out, "--verify", "--plot", plot, "--json", figures) == 0
    points = json.loads(figures.read_text())["frontier"]
    assert points[0]["compute"] == 1.0 and points[0]["error"] == 0.0 and points[-1]["error"] > 0
    assert plot.read_bytes().startswith(b"\x89PNG") and "Budgets, by what" in capsys.readouterr().out


def test_rebudget_measures_on_what_the_checkpoint_was_calibrated_on(
    quota_folder: Path, suite_folder: Path, tmp_path: Path, capsys
) -> None:
    out, lines = tmp_path / "small", []
    shutil.copytree(quota_folder, out)
    for number, sample in enumerate(make_samples(6)):
        assert not isinstance(sample.image, Path | tuple)
        sample.image.save(tmp_path / f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png", "question": sample.question}))
    (tmp_path / "questions.jsonl").write_text("\n".join(lines))
    assert call("rebudget", out, "--compute", 0.4, "--calibration", tmp_path / "questions.jsonl") == 0
    assert "expected loss" in (told := capsys.readouterr().out) and "nats (measured)" in told
    assert call("rebudget", out, "--compute", 0.4, "--calibration", suite_folder) == 1
    assert "these 6 samples are not the 6 that the checkpoint was calibrated on" in one_error(capsys)


def test_explain_draws_and_writes(quota_folder: Path, picture: Path, tmp_path: Path, capsys) -> None:
    png, figures = tmp_path / "kept.png", tmp_path / "kept.json"
    options = ("--image", picture, "--question", "what is this", "--output", png, "--json", figures)
    assert call("explain", quota_folder, *options) == 0
    assert png.read_bytes().startswith(b"\x89PNG")
    written = json.loads(figures.read_text())
    assert written["answer"] == capsys.readouterr().out.strip()
    assert [len(kept) for kept in written["kept"].values()] == PruningRecipe.load(quota_folder / "recipe.json").counts(
        16
    )


@pytest.mark.parametrize(
    "command",
    [
        *("compress", "rebudget", "run", "eval", "inspect", "explain", "report", "demo", "doctor", "bench ops"),
        "bench e2e",
    ],
)
def test_help_teaches_with_an_example(command: str, capsys) -> None:
    assert call(*command.split(), "--help") == 0
    assert f"quota {command} " in capsys.readouterr().out.split("Usage:")[1].split("\n", 1)[1]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        pytest.param(["compres"], 2, "Did you mean 'compress'", id="unknown command"),
        pytest.param(["run", "{full}"], 2, "Missing argument 'QUESTION'", id="missing argument"),
        pytest.param(["eval", "{full}", "--limit", "0"], 2, "'--limit'", id="value out of range"),
        pytest.param(["eval", "nothing", "--suite", "{suite}"], 1, "no model folder nothing", id="no such model"),
        pytest.param(["eval", "{full}"], 1, "one of FOLDER, easy-vqa, reference", id="no suite of its own"),
        pytest.param(
            ["eval", "{full}", "--suite", "{suite}", "--baseline", "nothing"],
            1,
            "no model folder nothing",
            id="no baseline",
        ),
        pytest.param(
            ["eval", "{full}", "--suite", "nothing"],
            1,
            "there is no suite nothing; give one of: a folder",
            id="no such suite",
        ),
        pytest.param(["compress", "{full}", "new"], 1, "give --calibration FILE", id="no calibration"),
        pytest.param(
            ["compress", "{full}", "new", "--calibration", "{suite}"], 1, "ask for fewer samples", id="too few samples"
        ),
        pytest.param(
            ["compress", "{full}", "new", "--calibration", "{suite}", "--samples", "2", "--keep", "1.5"],
            1,
            "1.5",
            id="keep above 1",
        ),
        pytest.param(["compress", "{full}", "{full}", "--calibration", "{suite}"], 1, "not empty", id="foreign folder"),
        pytest.param(["inspect", "{full}"], 1, "not written by quota", id="not compressed"),
        pytest.param(["rebudget", "{full}", "--keep", "0.2"], 1, "not written by quota", id="no budget to change"),
        pytest.param(["rebudget", "{full}"], 1, "there is no new budget", id="no new budget"),
        pytest.param(["run", "{full}", "--image", "no.png", "hi"], 1, "no.png", id="no such picture"),
        pytest.param(
            ["explain", "{full}", "--image", "{suite}/0.png", "--question", "hi", "--output", "x.png"],
            1,
            "not pruned",
            id="nothing to explain",
        ),
    ],
)
def test_errors_are_one_line(
    arguments: list[str],
    code: int,
    says: str,
    full_folder: Path,
    suite_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys,
) -> None:
    monkeypatch.chdir(tmp_path)
    filled = [argument.format(full=full_folder, suite=suite_folder) for argument in arguments]
    assert call(*filled) == code
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("quota:")]
    assert len(errors) == 1 and says in errors[0]
    assert list(tmp_path.iterdir()) == []


def test_inspect_verifies_and_names_what_is_damaged(quota_folder: Path, tmp_path: Path, capsys) -> None:
    copied = Path(shutil.copytree(quota_folder, tmp_path / "copy"))
    assert call("inspect", copied, "--verify") == 0
    assert "files hold what was written" in capsys.readouterr().err
    weights = copied / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-100] ^= 4
    weights.write_bytes(data)
    assert call("inspect", copied, "--verify") == 1
    assert "model.safetensors is damaged" in one_error(capsys)


def one_error(capsys) -> str:
    """The only line that the command itself has written to the error stream."""
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("quota:")]
    assert len(line) <= 307
    return line


@pytest.mark.parametrize("file", ["pipe", "/dev/zero", "/", "x" * 300, "no/such"])
@pytest.mark.parametrize("option", ["--image", "--suite"])
def test_what_is_no_file_is_refused_at_once(option: str, file: str, full_folder: Path, tmp_path: Path, capsys) -> None:
    os.mkfifo(tmp_path / "pipe")
    given = {"--image": ["run", full_folder, "what", "--image"], "--suite": ["eval", full_folder, "--suite"]}
    assert call(*given[option], tmp_path / file) == 1
    assert one_error(capsys)


def test_the_mark_of_a_picture_inside_a_question_is_refused(full_folder: Path, picture: Path, capsys) -> None:
    assert call("run", full_folder, "--image", picture, "what is <image> this") == 1
    assert "holds <image>, which stands for a picture" in one_error(capsys)


@pytest.mark.parametrize("option", ["--keep", "--compute", "--milliseconds"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "0", "-1"])
def test_numbers_that_are_none(
    option: str, value: str, full_folder: Path, suite_folder: Path, tmp_path: Path, capsys
) -> None:
    options = ("--calibration", suite_folder, "--samples", 2, f"{option}={value}")
    assert call("compress", full_folder, tmp_path / "out", *options) == 1
    assert one_error(capsys).startswith(f"quota: {option[2:]} must be above 0")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "processor_config.json", "generation_config.json"])
@pytest.mark.parametrize("text", ["[" * 50_000, "[]", "3", '{"a": ' + "1" * 5000 + "}", '{"model_type": 3}', "\x00"])
def test_files_of_a_model_that_are_broken(
    name: str, text: str, full_folder: Path, picture: Path, tmp_path: Path, capsys
) -> None:
    copied = Path(shutil.copytree(full_folder, tmp_path / "copy"))
    (copied / name).write_text(text)
    code = call("run", copied, "--image", picture, "what is this")
    # Keys that nobody knows are nobody's fault.
    if code != 0:
        assert code == 1 and "defect" not in one_error(capsys)


class TestSignals:
    """What ends a process from outside, in processes of their own."""

    @pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    @pytest.mark.parametrize("moment", ["imports", "work"])
    def test_a_signal_is_one_line_at_any_time(
        self, moment: str, sent: signal.Signals, code: int, full_folder: Path, suite_folder: Path, tmp_path: Path
    ) -> None:
        # While torch is imported, or when the first block of the model is finished.
        at = {"imports": "quota.cli.checkpoints", "work": "quota.report.progress"}[moment]
        script = (
            "import os, sys, wrapt, quota.cli\n"
            f"wrapt.when_imported({at!r})(lambda module: os.kill(os.getpid(), {int(sent)}))\n"
            "quota.cli.main(sys.argv[1:])"
        )
        arguments = ["compress", full_folder, tmp_path / "out", "--calibration", suite_folder, "--samples", "2"]
        done = subprocess.run([sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True)
        assert done.returncode == code
        assert done.stderr == "quota: interrupted; the same command goes on\n"
        assert list(tmp_path.iterdir()) == []

    def test_a_full_disk_behind_the_output(self, quota_folder: Path) -> None:
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                quota_command("inspect", quota_folder), stdout=full, stderr=subprocess.PIPE, text=True
            )
        assert done.returncode == 1
        assert done.stderr.startswith("quota: the output: No space left on device") and done.stderr.count("\n") == 1

    def test_a_reader_that_has_gone(self, quota_folder: Path) -> None:
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run(quota_command("inspect", quota_folder), stdout=writing, stderr=subprocess.PIPE, text=True)
        os.close(writing)
        assert (done.returncode, done.stderr) == (1, "")


def quota_command(*arguments: object) -> list[str]:
    return [sys.executable, "-c", "from quota.cli import main; main()", *map(str, arguments)]


@pytest.mark.parametrize(
    ("user", "spin"),
    [({}, "4000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, None)],
    ids=["nothing", "the same", "the policy"],
)
def test_threads_spin_for_microseconds_unless_the_user_says_otherwise(user: dict[str, str], spin: str | None) -> None:
    """libgomp says itself what it has read."""
    policies = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in os.environ.items() if name not in policies}
    environment |= {"OMP_DISPLAY_ENV": "verbose"} | user
    script = "from quota.cli import main\ntry: main(['--help'])\nexcept SystemExit: import torch"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert (f"GOMP_SPINCOUNT = '{spin}'" in done.stderr) == (spin is not None)
    assert "GOMP_SPINCOUNT = " in done.stderr


def test_debug_shows_the_traceback_wherever_it_stands(tmp_path: Path, capsys) -> None:
    assert call("inspect", tmp_path / "no.json", "--debug") == 1
    assert "Traceback" in capsys.readouterr().err
    assert call("inspect", tmp_path / "no.json") == 1
    assert "Traceback" not in capsys.readouterr().err


def test_alone_it_shows_its_help(capsys) -> None:
    assert call() == 2
    said = capsys.readouterr()
    assert "quota demo" in said.out and "quota:" not in said.err


def test_the_folder_that_one_stands_in_is_replaced(
    quota_folder: Path, suite_folder: Path, full_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.chdir(out)
    options = ("--calibration", suite_folder, "--samples", 2, "--method", "paper", "--json", tmp_path / "made.json")
    assert call("compress", full_folder, ".", *options) == 0
    shutil.copytree(quota_folder, out, dirs_exist_ok=True)
    monkeypatch.chdir(out)
    assert call("rebudget", ".", "--keep", 0.2, "--json", tmp_path / "changed.json") == 0
    assert json.loads((tmp_path / "changed.json").read_text())["recipe"]["keep"] == 0.2


def test_figures_for_the_output_join_what_stands_there(quota_folder: Path, tmp_path: Path) -> None:
    """Also where the shell has sent it to a file, which a rename would replace."""
    log = tmp_path / "log.txt"
    log.write_text("earlier\n")
    with log.open("a") as output:
        command = [sys.executable, "-m", "quota", "inspect", quota_folder, "--json", "/dev/stdout"]
        subprocess.run(command, stdout=output, check=True)
    earlier, *_, last = log.read_text().splitlines()
    assert (earlier, last) == ("earlier", "}")
    assert "W4A4KV4" in log.read_text()


def test_retention_is_of_the_recipe_that_answered(
    quota_folder: Path, suite_folder: Path, full_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    out = Path(shutil.copytree(quota_folder, tmp_path / "out"))
    evaluate = questions._evaluate

    def meanwhile(model: str, *arguments: Any) -> Any:
        if model == str(full_folder):
            assert call("rebudget", out, "--keep", 0.2) == 0
        return evaluate(model, *arguments)

    monkeypatch.setattr(questions, "_evaluate", meanwhile)
    figures = tmp_path / "figures.json"
    options = ("--suite", suite_folder, "--limit", 1, "--baseline", full_folder, "--json", figures)
    assert call("eval", out, *options) == 0
    assert "another recipe by now" in capsys.readouterr().err
    assert "not measured" in (out / "README.md").read_text()
    assert "retention" in json.loads(figures.read_text())
