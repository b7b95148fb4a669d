"""Commands that ask a model about pictures: run, eval, explain."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quota.cli.app import Backend, Device, JsonFile, Model, app, console, notes, write_json
from quota.errors import QuotaError

if TYPE_CHECKING:
    from quota.evaluation import Evaluation
    from quota.pruning.recipe import PruningRecipe
    from quota.samples import Sample

Images = Annotated[
    list[Path] | None, typer.Option("--image", metavar="FILE", help="The picture; give it again for several.")
]
Video = Annotated[
    Path | None, typer.Option(metavar="PATH", help="In its place a video: an animated picture, or a folder of frames.")
]

LONGEST_ANSWER = 256
"""Tokens that `quota run` lets a model say."""


@app.command()
def run(
    model: Model,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to ask about the picture.")],
    image: Images = None,
    video: Video = None,
    backend: Backend = None,
    device: Device = None,
) -> None:
    """Answer one question about a picture, several pictures, or a video. Answers have up to 256 tokens.

    ```text
    quota run small/ --image street.jpg "How many cars are there?"
    quota run small/ --image before.jpg --image after.jpg "What has changed?"
    quota run small/ --video fall.gif "Does the ball fall?"
    ```
    """
    from quota import ops
    from quota.checkpoint.named import load_model
    from quota.prompts import answer

    sample = _sample(image, video, question)
    network, processor, _ = load_model(model)
    with ops.record() as operators:
        said = answer(network, processor, sample, LONGEST_ANSWER)
    typer.echo(said)
    notes.print(f"operators: {operators}")


@app.command(name="eval")
def evaluate_suite(
    model: Model,
    suite: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="A folder with questions.jsonl and its images, or one of the shipped suites: `reference`, `easy-vqa`. "
            "Only a model that ships with a suite has that one by default.",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N questions of each task.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Questions answered at once; default: 32, on a GPU 128.")
    ] = None,
    workers: Annotated[
        int,
        typer.Option(min=1, help="Processes that share the batches, by Ray (extra `ray`); the answers stay the same."),
    ] = 1,
    baseline: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The original: also measure retention, and write it into MODEL's card."),
    ] = None,
    json_file: JsonFile = None,
    backend: Backend = None,
    device: Device = None,
) -> None:
    """Measure accuracy: exact match after normalisation, per task and on average, with its 95% interval.

    ```text
    quota eval reference --limit 100
    quota eval small/ --suite my-questions/ --json figures.json
    quota eval small/ --baseline reference
    quota eval small/ --suite my-questions/ --workers 4
    ```

    The JSON holds accuracy (per task), average, interval (low, high), questions, tokens_per_second and backends (those
    that ran each job). Accuracies are fractions. The average weighs every task the same; the interval is a bootstrap
    within tasks. With --baseline there are also retention and retention_interval, the mean over tasks of accuracy
    relative to the baseline's (null if that answers nothing right in some task).
    """
    from quota.checkpoint.card import record_retention
    from quota.checkpoint.described import described
    from quota.checkpoint.named import label, suite_folder
    from quota.evaluation.statistics import retention, retention_interval
    from quota.report.tables import evaluation_table
    from quota.samples import first_of_each_task, read_samples

    suite = suite or _own_suite(model)
    questions = read_samples(suite_folder(suite))
    if limit is not None:
        questions = first_of_each_task(questions, limit)
    checkpoint = recipe = None
    if baseline is not None:
        # Before the minutes of questions, not after them.
        label(baseline)
        checkpoint, recipe = _with_card(model)
    evaluation = _evaluate(model, questions, batch_size, workers, "answering")
    console.print(evaluation_table(evaluation, f"{label(model)} on {suite}"))
    speed = f"{evaluation.tokens_per_second:.1f} tokens/s (answer tokens over the time of generate)"
    notes.print(f"{speed}; operators: {evaluation.operators}")
    if baseline is None:
        write_json(json_file, evaluation.figures())
        return
    name = label(baseline)
    original = _evaluate(baseline, questions, batch_size, workers, f"answering as {name}")
    share = retention(evaluation.outcomes, original.outcomes)
    interval = retention_interval(evaluation.outcomes, original.outcomes)
    write_json(json_file, evaluation.figures() | {"retention": share, "retention_interval": interval})
    if share is None or interval is None:
        notes.print(f"retention is undefined: {name} answers nothing right in some task")
        return
    console.print(f"retention: {share:.1%} of {name}, 95% interval {interval[0]:.1%} to {interval[1]:.1%}")
    if checkpoint is None:
        return
    try:
        if described(checkpoint).recipe != recipe:
            raise QuotaError(f"{checkpoint} has another recipe by now")
        record_retention(checkpoint, share, interval, name, suite, len(questions))
    except QuotaError as error:
        notes.print(f"retention does not stand in the card: {error}")


@app.command()
def explain(
    model: Annotated[str, typer.Argument(metavar="OUT", help="A checkpoint that `quota compress` wrote.")],
    question: Annotated[str, typer.Option(help="What to ask about it.")],
    output: Annotated[Path, typer.Option(metavar="PNG", help="Where to draw.")],
    image: Images = None,
    video: Video = None,
    json_file: JsonFile = None,
    backend: Backend = None,
) -> None:
    """Draw which visual tokens each candidate layer kept for one question, and the schedule they follow.

    There is a row for each picture, or for each frame of a video. The JSON holds answer, kept (layer: indices of
    tokens), boxes (for each token: picture, left, top, right, bottom as fractions of it, level, span; null without a
    place), visual_tokens_per_layer and backends.

    quota explain small/ --image street.jpg --question "How many cars are there?" --output kept.png
    """
    from quota.checkpoint.named import load_model
    from quota.report.explain import draw_explanation
    from quota.report.explain import explain as explain_sample
    from quota.report.plot import require_matplotlib

    require_matplotlib()
    sample = _sample(image, video, question)
    network, processor, _ = load_model(model)
    explanation = explain_sample(network, processor, sample)
    draw_explanation(question, explanation, output)
    typer.echo(explanation.followed.answer)
    notes.print(f"drawn: {output}; operators: {explanation.followed.operators}")
    write_json(json_file, explanation.figures())


def _sample(images: list[Path] | None, video: Path | None, question: str) -> Sample:
    """The question that a command asks; QuotaError, before a model is loaded, for pictures that cannot be read."""
    from quota.samples import Sample

    if bool(images) == bool(video):
        raise QuotaError("ask about pictures (--image FILE, once or several times) or about a video (--video PATH)")
    sample = Sample(video or tuple(images or ()), question, video=video is not None)
    sample.pictures()
    return sample


def _evaluate(model: str, questions: list[Sample], batch_size: int | None, workers: int, step: str) -> Evaluation:
    from quota.checkpoint.named import load_model
    from quota.evaluation import evaluate
    from quota.evaluation.workers import evaluate_over
    from quota.report.progress import progress_bar

    if workers > 1:
        with progress_bar(step) as progress:
            return evaluate_over(model, questions, workers, batch_size, progress=progress)
    network, processor, _ = load_model(model)
    with progress_bar(step) as progress:
        return evaluate(network, processor, questions, batch_size, progress=progress)


def _with_card(model: str) -> tuple[Path | None, PruningRecipe | None]:
    """The checkpoint of ours that `model` names, and its recipe as it is now; None for what ships or is not ours."""
    from quota.checkpoint.described import described
    from quota.checkpoint.named import find_folder, shipped
    from quota.files import is_checkpoint

    folder = None if shipped(model) else find_folder(model)
    return (folder, described(folder).recipe) if folder is not None and is_checkpoint(folder) else (None, None)


def _own_suite(model: str) -> str:
    """The suite that is asked where none is given."""
    from transformers import AutoConfig

    from quota.checkpoint.named import find_folder, in_one_line, own_suite, shipped_suites

    source = find_folder(model)
    with in_one_line(model):
        found = None if source is None else own_suite(AutoConfig.from_pretrained(source))
    if found is None:
        known = ", ".join(["FOLDER", *sorted(shipped_suites())])
        raise QuotaError(f"{model} ships with no questions: give --suite, one of {known}")
    return found
