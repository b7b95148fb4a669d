"""Commands that make a checkpoint, change its budget, or say what one is: compress, rebudget, inspect."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quota.cli.app import Backend, Device, JsonFile, Model, Seed, app, console, notes, write_json
from quota.errors import QuotaError

if TYPE_CHECKING:
    from quota.samples import Sample


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
    transforms: Annotated[
        str,
        typer.Option(
            help="In front of the quantisers: a rotation alone (hadamard), or balanced by what is learned from the "
            "calibration set (learned)."
        ),
    ] = "learned",
    scheme: Annotated[
        str,
        typer.Option(
            help="Bits of weights, activations and cache: w4a4 (KV4), or w4a8, which keeps more at the same size and "
            "nearly the same speed."
        ),
    ] = "w4a4",
    keep: Annotated[
        float | None,
        typer.Option(
            help="Visual tokens left after the last pruned layer, in (0, 1]; default: 0.30, or what one of the budgets "
            "below is best spent on."
        ),
    ] = None,
    method: Annotated[str, typer.Option(help="How tokens are chosen: `quota`, or `paper` as published.")] = "quota",
    compute: Annotated[
        float | None,
        typer.Option(
            help="Largest share of the visual tokens' prefill arithmetic to spend, in (0, 1]; default: what the "
            "published schedule would spend."
        ),
    ] = None,
    milliseconds: Annotated[
        float | None,
        typer.Option(
            help="Instead of --compute: the longest that the prefill of a typical prompt may take on this machine, "
            "which should be idle."
        ),
    ] = None,
    kv_bytes: Annotated[
        float | None,
        typer.Option(
            help="Instead of either: the most bytes that the KV cache may take after the prefill of a typical prompt."
        ),
    ] = None,
    seed: Seed = 0,
    json_file: JsonFile = None,
    backend: Backend = None,
    device: Device = None,
) -> None:
    """Quantise MODEL (to W4A4KV4 by default), find its pruning recipe, and save both to OUT.

    OUT then loads as any transformers checkpoint does, after `import quota`. Weights are read block by block; all of
    them are in memory only packed, half a byte each, while drops are measured. If the command is interrupted, the same
    command goes on where it stopped: finished blocks lie in .OUT.compressing beside OUT. While one run writes OUT, a
    second is refused.

    ```text
    quota compress reference small/
    quota compress llava-hf/llava-1.5-7b-hf small/ --calibration vqa/ --keep 0.3
    torchrun --nproc-per-node 4 -m quota compress reference small/        (four processes share the samples)
    ```
    """
    from quota.checkpoint.named import calibration_samples, model_dtype, model_folder
    from quota.compress import Options
    from quota.compress_folder import compress_folder, finished_blocks
    from quota.files import refuse_foreign
    from quota.ranks import joined
    from quota.report.inspection import inspect_path
    from quota.report.progress import progress_bar
    from quota.report.tables import inspection_table
    from quota.scheme import QuantizationScheme, bits_named

    with ExitStack() as running:
        ranks = running.enter_context(joined())
        # The others work in silence.
        console.quiet = notes.quiet = not ranks.first
        quantization = QuantizationScheme(**bits_named(scheme), transforms=transforms)
        # Before a model is fetched and calibrated, not after.
        budgets = {"keep": keep, "compute": compute, "milliseconds": milliseconds, "kv_bytes": kv_bytes}
        Options(scheme=quantization, method=method, seed=seed, **budgets)
        place = out.resolve()
        refuse_foreign(place)
        chosen = calibration_samples(model, calibration, samples, seed)
        source = model_folder(model)
        if finished := finished_blocks(out):
            notes.print(f"{finished} blocks are finished already")
        result = compress_folder(
            source,
            place,
            chosen,
            dtype=model_dtype(model),
            progress=running.enter_context(progress_bar("calibrating")) if ranks.first else None,
            ranks=ranks,
            scheme=quantization,
            method=method,
            seed=seed,
            **budgets,
        )
    if not ranks.first:
        return
    inspection = inspect_path(place)
    console.print(inspection_table(inspection, str(out)))
    notes.print(f"compressed in {result.seconds:.0f} s; operators: {result.operators}")
    notes.print(f"try: quota eval {out} --suite FOLDER")
    if ranks.size > 1:
        notes.print(f"{ranks.size} ranks; each gave {ranks.sent / 1e6:.1f} MB into sums")
    made = {"seconds": result.seconds, "backends": result.operators.backends()}
    write_json(json_file, inspection.figures() | made)


@app.command()
def rebudget(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A checkpoint that `quota compress` wrote.")],
    keep: Annotated[
        float | None,
        typer.Option(help="Visual tokens left after the last pruned layer, in (0, 1]; open if only a budget is given."),
    ] = None,
    compute: Annotated[
        float | None, typer.Option(help="Largest share of the visual tokens' prefill arithmetic to spend, in (0, 1].")
    ] = None,
    milliseconds: Annotated[
        float | None,
        typer.Option(help="The longest that the prefill of a typical prompt may take on this machine."),
    ] = None,
    kv_bytes: Annotated[
        float | None,
        typer.Option(help="The most bytes that the KV cache may take after the prefill of a typical prompt."),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="What OUT was calibrated on (`reference` for the model of that name): measure what the best schedules "
            "do, which takes minutes, instead of putting it together from what was measured before.",
        ),
    ] = None,
    json_file: JsonFile = None,
    backend: Backend = None,
    device: Device = None,
) -> None:
    """Give OUT the pruning recipe for another budget, in seconds: by what calibration measured, without its data.

    Recipe, manifest and model card change together; the weights stay. For --milliseconds a machine that OUT was not
    timed on is timed first, and should do nothing else meanwhile. `quota inspect OUT` shows what budgets buy.

    ```text
    quota rebudget small/ --keep 0.2
    quota rebudget small/ --compute 0.35
    quota rebudget small/ --kv-bytes 300000 --calibration vqa/
    ```
    """
    import time
    from contextlib import nullcontext

    from quota.checkpoint import rebudget as change
    from quota.report.inspection import inspect_path
    from quota.report.progress import progress_bar
    from quota.report.tables import inspection_table

    began, place = time.perf_counter(), out.resolve()
    samples = None if calibration is None else _calibrated_on(out, calibration)
    with nullcontext() if samples is None else progress_bar("measuring schedules") as progress:
        change(
            place,
            keep,
            compute=compute,
            milliseconds=milliseconds,
            kv_bytes=kv_bytes,
            samples=samples,
            progress=progress,
        )
    seconds = time.perf_counter() - began
    inspection = inspect_path(place)
    console.print(inspection_table(inspection, str(out)))
    notes.print(f"a new recipe in {seconds:.1f} s; try: quota eval {out} --suite FOLDER")
    write_json(json_file, inspection.figures() | {"seconds": seconds})


def _calibrated_on(out: Path, source: str) -> list[Sample]:
    """The samples of `source` that a checkpoint of its recipe's number and seed was calibrated on."""
    from quota.checkpoint.described import described
    from quota.checkpoint.named import calibration_samples, shipped

    recipe = described(out).recipe
    count, seed = (0, 0) if recipe is None else (recipe.samples, recipe.seed)
    return calibration_samples(source, None if shipped(source) else Path(source), count, seed)


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(metavar="OUT", help="A compressed checkpoint, or a recipe.json.")],
    verify: Annotated[
        bool, typer.Option("--verify", help="Also compare every file of the checkpoint with its manifest.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Also draw what budgets buy: loss against what is spent.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Say what a compressed checkpoint or a recipe is, and what other budgets would buy (`quota rebudget`).

    The JSON holds recipe, scheme, sizes, chosen (what the recipe costs a typical prompt, and its expected loss in nats)
    and frontier (the same of the best schedules for smaller and smaller budgets).

    ```text
    quota inspect small/ --verify
    quota inspect small/ --plot frontier.png
    quota inspect small/recipe.json
    ```
    """
    from quota.checkpoint.manifest import verify as verify_files
    from quota.report.frontier import draw_frontier
    from quota.report.inspection import inspect_path
    from quota.report.tables import frontier_table, inspection_table

    if verify:
        if not path.is_dir():
            raise QuotaError(f"{path} is no checkpoint to verify; give its folder")
        notes.print(f"verified: {verify_files(path)} files hold what was written")
    inspection = inspect_path(path)
    console.print(inspection_table(inspection, str(path)))
    if inspection.frontier:
        console.print(frontier_table(inspection.frontier, inspection.chosen))
    if plot is not None:
        draw_frontier(inspection, plot)
        notes.print(f"drawn: {plot}")
    write_json(json_file, inspection.figures() | {"frontier": [one.figures() for one in inspection.frontier]})
