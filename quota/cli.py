"""The `quota` command: each subcommand is a thin shell around one function of the package.

What was wrong is said in one line on the error stream, with exit code 1 (2 for a mistake in the command line itself);
a traceback appears only with --debug.
"""

from __future__ import annotations

import json
import random
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from transformers.utils.logging import disable_progress_bar
from typer.exceptions import TyperException

from quota.errors import QuotaError

app = typer.Typer(
    name="quota",
    help=(
        "Make a vision-language model smaller and its prompts shorter: W4A4KV4 weights, activations and KV cache, and "
        "visual tokens dropped inside the prefill by a calibrated recipe.\n\n"
        "MODEL is a hub id, a folder, or `reference`, the small model that ships with the package.\n\n"
        "    quota demo\n"
        "    quota compress reference small/\n"
        "    quota eval small/\n\n"
        "Every command explains itself: `quota compress --help`. With `--debug`, errors show their traceback."
    ),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
# Without markup: answers and paths may hold brackets.
console = Console(markup=False)
notes = Console(stderr=True, markup=False, highlight=False)

LONGEST_ANSWER = 256
"""Tokens that `quota run` lets a model say."""

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A hub id, a folder, or `reference`.")]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write all figures here.")]
Seed = Annotated[int, typer.Option(help="Seed of everything that is drawn.")]


@app.command()
def compress(
    model: Model,
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="Folder for the checkpoint; only an older one of ours is replaced."),
    ],
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Questions to calibrate on: a .jsonl file, or a folder with questions.jsonl; one object a line with "
            "image, question and, if you like, answer and task. Not needed for `reference`, which draws its own.",
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="How many of them to use.")] = 128,
    keep: Annotated[float, typer.Option(help="Visual tokens left after the last pruned layer, in (0, 1].")] = 0.30,
    seed: Seed = 0,
    json_file: JsonFile = None,
) -> None:
    """Quantise MODEL to W4A4KV4, find its pruning recipe, and save both to OUT.

    OUT then loads as any transformers checkpoint does, after `import quota`.

    ```text
    quota compress reference small/
    quota compress llava-hf/llava-1.5-7b-hf small/ --calibration vqa/ --keep 0.3
    ```
    """
    import quota
    from quota.files import refuse_foreign
    from quota.loading import load_model
    from quota.report.inspection import inspect_path
    from quota.report.progress import progress_bar
    from quota.report.tables import inspection_table

    # Before the minutes of calibration, not after them.
    refuse_foreign(out)
    chosen = _calibration_samples(model, calibration, samples, seed)
    network, processor, _ = load_model(model)
    with progress_bar("calibrating") as progress:
        result = quota.compress(network, processor, chosen, keep=keep, seed=seed, progress=progress)
    quota.save_pretrained(network, processor, out)
    inspection = inspect_path(out)
    console.print(inspection_table(inspection, str(out)))
    notes.print(f"compressed in {result.seconds:.0f} s; try: quota eval {out}")
    _write_json(json_file, inspection.figures() | {"seconds": result.seconds})


@app.command()
def run(
    model: Model,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to ask about the picture.")],
    image: Annotated[Path, typer.Option(metavar="FILE", help="The picture.")],
) -> None:
    """Answer one question about one picture.

    quota run small/ --image street.jpg "How many cars are there?"
    """
    from quota.evaluation.generation import answer
    from quota.loading import load_model
    from quota.samples import Sample

    sample = Sample(image, question)
    sample.picture()
    network, processor, _ = load_model(model)
    typer.echo(answer(network, processor, sample, LONGEST_ANSWER))


@app.command(name="eval")
def evaluate_suite(
    model: Model,
    suite: Annotated[
        str,
        typer.Option(
            metavar="FOLDER",
            help="A folder with questions.jsonl and its images, or one of the shipped suites: `reference`, `easy-vqa`.",
        ),
    ] = "reference",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N questions of each task.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions answered at once.")] = 32,
    json_file: JsonFile = None,
) -> None:
    """Measure accuracy: exact match after normalisation, per task and on average, with its 95% interval.

    ```text
    quota eval reference --limit 100
    quota eval small/ --suite my-questions/ --json figures.json
    ```

    The JSON holds accuracy (per task), average, interval (low, high), questions and tokens_per_second; accuracies
    are fractions. The average weighs every task the same; the interval is a bootstrap within tasks.
    """
    from quota.evaluation import evaluate
    from quota.loading import load_model
    from quota.report.progress import progress_bar
    from quota.report.tables import evaluation_table
    from quota.samples import first_of_each_task, read_samples

    questions = read_samples(_suite_path(suite))
    if limit is not None:
        questions = first_of_each_task(questions, limit)
    network, processor, label = load_model(model)
    with progress_bar("answering") as progress:
        evaluation = evaluate(network, processor, questions, batch_size, progress=progress)
    console.print(evaluation_table(evaluation, f"{label} on {suite}"))
    notes.print(f"{evaluation.tokens_per_second:.1f} tokens/s (answer tokens over the time of generate)")
    _write_json(json_file, evaluation.figures())


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(metavar="OUT", help="A compressed checkpoint, or a recipe.json.")],
    json_file: JsonFile = None,
) -> None:
    """Say what a compressed checkpoint or a recipe is: scheme, layers, keep ratios, counts, sizes, versions.

    quota inspect small/
    quota inspect small/recipe.json
    """
    from quota.report.inspection import inspect_path
    from quota.report.tables import inspection_table

    inspection = inspect_path(path)
    console.print(inspection_table(inspection, str(path)))
    _write_json(json_file, inspection.figures())


@app.command()
def explain(
    model: Annotated[str, typer.Argument(metavar="OUT", help="A checkpoint that `quota compress` wrote.")],
    image: Annotated[Path, typer.Option(metavar="FILE", help="The picture.")],
    question: Annotated[str, typer.Option(help="What to ask about it.")],
    output: Annotated[Path, typer.Option(metavar="PNG", help="Where to draw.")],
    json_file: JsonFile = None,
) -> None:
    """Draw which visual tokens each candidate layer kept for one question, and the schedule they follow.

    quota explain small/ --image street.jpg --question "How many cars are there?" --output kept.png
    """
    from quota.loading import load_model
    from quota.report.explain import draw_explanation
    from quota.report.explain import explain as explain_sample
    from quota.report.schedule import require_matplotlib
    from quota.samples import Sample

    require_matplotlib()
    sample = Sample(image, question)
    sample.picture()
    network, processor, _ = load_model(model)
    explanation = explain_sample(network, processor, sample)
    draw_explanation(question, explanation, output)
    typer.echo(explanation.answer)
    notes.print(f"drawn: {output}")
    _write_json(json_file, explanation.figures())


@app.command()
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the checkpoint and the picture.")] = Path("demo"),
    json_file: JsonFile = None,
    questions: Annotated[
        int | None, typer.Option(min=1, help="Questions of each task; the default lets it end in minutes.")
    ] = None,
) -> None:
    """Compress the shipped model, save it, load it back, and compare it with three other variants.

    Prints one table (full precision, quantised only, pruned only, QUOTA) and draws kept_tokens.png.

    ```text
    quota demo
    quota demo --out demo --json demo/demo.json --questions 100
    ```
    """
    from quota.demo import QUESTIONS, run_demo
    from quota.report.progress import progress_steps
    from quota.report.tables import demo_tables

    with progress_steps() as progress:
        result = run_demo(out, questions or QUESTIONS, progress)
    for table in demo_tables(result):
        console.print(table)
    notes.print(f"kept tokens: {result.picture}; checkpoint: {result.checkpoint}; {result.seconds:.0f} s in all")
    _write_json(json_file, result.figures())


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Exits with 0, 1 (it went wrong), 2 (wrong command line) or 130 (interrupted)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    # transformers' own bars would stand among ours.
    disable_progress_bar()
    try:
        code = app(args=[word for word in given if word != "--debug"], prog_name="quota", standalone_mode=False)
    except Exception as error:
        if debug:
            traceback.print_exc()
        elif str(error):
            print(f"quota: {_one_line(error)}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))
    sys.exit(code if isinstance(code, int) else 0)


def _one_line(error: Exception) -> str:
    if isinstance(error, QuotaError):
        return str(error)
    if isinstance(error, TyperException):
        return f"{error.format_message().rstrip('.')}; see `quota --help`"
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first} (this is a defect; --debug shows where)"


def _calibration_samples(model: str, file: Path | None, count: int, seed: int) -> list[Any]:
    """`count` samples of the user's file, drawn by the seed; the generator's own for the reference model."""
    from quota import reference
    from quota.loading import REFERENCE
    from quota.samples import read_samples

    if file is None:
        if model != REFERENCE:
            raise QuotaError("--calibration is needed for this model: a .jsonl file of questions about pictures")
        return reference.calibration_samples(count, seed)
    found = read_samples(file)
    if len(found) < count:
        raise QuotaError(f"{file} holds {len(found)} questions; add some, or pass --samples {len(found)}")
    return random.Random(seed).sample(found, count)


def _suite_path(name: str) -> Path:
    from quota import reference

    if name == "easy-vqa":
        return reference.easy_vqa_path()
    return reference.suite_path() if name == "reference" else Path(name)


def _write_json(file: Path | None, figures: dict[str, Any]) -> None:
    from quota.files import write_atomically

    if file is not None:
        write_atomically(file, json.dumps(figures, indent=2, allow_nan=False) + "\n")
