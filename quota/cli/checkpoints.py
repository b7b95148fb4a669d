"""Commands that make a checkpoint, or say what one is: compress, inspect."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Annotated, Any

import typer

from quota.cli.app import Backend, JsonFile, Model, Seed, app, console, notes, write_json
from quota.errors import QuotaError


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
            help="In front of the quantisers: a rotation alone (hadamard), balanced by what is learned from the "
            "calibration set (learned), or a matrix trained for every layer in its place (trained)."
        ),
    ] = "learned",
    keep: Annotated[float, typer.Option(help="Visual tokens left after the last pruned layer, in (0, 1].")] = 0.30,
    graph: Annotated[
        str,
        typer.Option(
            help="Calibrate on all visual tokens (unpruned), on those of the recipe (pruned), or in rounds (joint)."
        ),
    ] = "unpruned",
    visual_share: Annotated[
        float | None,
        typer.Option(
            help="What visual tokens count for when weights are rounded, in (0, 1); by default all are alike."
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
    seed: Seed = 0,
    json_file: JsonFile = None,
    backend: Backend = None,
) -> None:
    """Quantise MODEL to W4A4KV4, find its pruning recipe, and save both to OUT.

    OUT then loads as any transformers checkpoint does, after `import quota`. Weights are read block by block and are
    never in memory all at once, and if the command is interrupted, the same command goes on where it stopped; but with
    another graph than the unpruned one, the model is in memory and a new run starts anew. While one run writes OUT, a
    second is refused.

    ```text
    quota compress reference small/
    quota compress llava-hf/llava-1.5-7b-hf small/ --calibration vqa/ --keep 0.3
    ```
    """
    import quota
    from quota.calibration.rounds import as_graph
    from quota.checkpoint.named import load_model, model_dtype, model_folder
    from quota.compress_folder import compress_folder, finished_blocks
    from quota.files import refuse_foreign
    from quota.report.inspection import inspect_path
    from quota.report.progress import progress_bar
    from quota.report.tables import inspection_table
    from quota.scheme import QuantizationScheme

    # Before the minutes of calibration, not after them.
    refuse_foreign(out)
    scheme, calibrated_in = QuantizationScheme(transforms=transforms), as_graph(graph)
    chosen = _calibration_samples(model, calibration, samples, seed)
    source = model_folder(model)
    if calibrated_in != "unpruned":
        notes.print(f"graph {graph}: the whole model is in memory, and if interrupted, the command starts anew")
    elif finished := finished_blocks(out):
        notes.print(f"{finished} blocks are finished already")
    with progress_bar("calibrating") as progress:
        if calibrated_in == "unpruned":
            result = compress_folder(
                source,
                out,
                chosen,
                keep=keep,
                scheme=scheme,
                seed=seed,
                dtype=model_dtype(model),
                progress=progress,
                visual_share=visual_share,
                method=method,  # pyright: ignore[reportArgumentType] (compress says what is wrong)
                compute=compute,
                milliseconds=milliseconds,
            )
        else:
            # Several sweeps, each from the original weights, which are held in memory meanwhile.
            network, processor, _ = load_model(model)
            result = quota.compress(
                network,
                processor,
                chosen,
                keep=keep,
                scheme=scheme,
                method=method,  # pyright: ignore[reportArgumentType] (compress says what is wrong)
                compute=compute,
                milliseconds=milliseconds,
                seed=seed,
                progress=progress,
                graph=calibrated_in,
                visual_share=visual_share,
            )
            quota.save_pretrained(network, processor, out)
    inspection = inspect_path(out)
    console.print(inspection_table(inspection, str(out)))
    notes.print(f"compressed in {result.seconds:.0f} s; operators: {result.operators}; try: quota eval {out}")
    if not result.settled:
        notes.print(f"after {result.sweeps} sweeps the recipe was still changing; the one of the last sweep is kept")
    made = {
        "seconds": result.seconds,
        "graph": graph,
        "visual_share": visual_share,
        "sweeps": result.sweeps,
        "settled": result.settled,
        "backends": result.operators.backends(),
    }
    write_json(json_file, inspection.figures() | made)


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
    write_json(json_file, inspection.figures())


def _calibration_samples(model: str, file: Path | None, count: int, seed: int) -> list[Any]:
    """`count` samples of the user's file, drawn by the seed; a shipped model draws its own."""
    from quota.checkpoint.named import shipped
    from quota.samples import read_samples

    if file is None:
        if (known := shipped(model)) is None:
            raise QuotaError("--calibration is needed for this model: a .jsonl file of questions about pictures")
        return known.calibration_samples(count, seed)
    found = read_samples(file)
    if len(found) < count:
        raise QuotaError(f"{file} holds {len(found)} questions; add some, or pass --samples {len(found)}")
    return random.Random(seed).sample(found, count)
