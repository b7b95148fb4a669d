"""`quota bench`: how fast this machine runs what quota does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quota.cli.app import Backend, JsonFile, Seed, app, console, notes, write_json
from quota.errors import QuotaError

if TYPE_CHECKING:
    from quota_lab.bench.report import Report

bench = typer.Typer(
    name="bench",
    help=(
        "Measure this machine against what one would run otherwise: `quota bench ops`, `quota bench e2e`, "
        "`quota bench threads`, `quota bench compress`, servers by `quota bench serve`, `quota bench vllm`.\n\n"
        "A ratio above 1 is better than the baseline. The JSON holds device, threads, others (the share of the machine "
        "that other processes took) and rows; every row has job, shape, backend, value, baseline, baseline_value and "
        "ratio. Values are seconds (linear, decode_attention, ttft, overhead, and the parts of a prefill and of a "
        "decoding step), tokens a second (decode) or bytes (memory)."
    ),
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
app.add_typer(bench)


def show(report: Report) -> None:
    """Print its tables, and a warning if the machine was busy."""
    from quota_lab.bench.tables import bench_tables

    for table in bench_tables(report):
        console.print(table)
    if warning := report.warning():
        notes.print(f"[bold]{warning}[/bold]")


@bench.command()
def ops(json_file: JsonFile = None, backend: Backend = None) -> None:
    """Time the operators alone: W4A4 linear layers, and decode attention over the packed cache; data come from memory.

    ```text
    quota bench ops --json ops.json
    quota bench ops --backend torch
    ```
    """
    from quota.report.progress import progress_steps
    from quota_lab.bench import bench_operators

    with progress_steps() as progress:
        report = bench_operators(progress=progress)
    show(report)
    write_json(json_file, report.figures())


@bench.command()
def e2e(
    models: Annotated[
        list[str] | None, typer.Option("--model", help="reference or realistic; give it twice for both, the default.")
    ] = None,
    turns: Annotated[int, typer.Option(min=1, help="How often each is timed.")] = 5,
    json_file: JsonFile = None,
    backend: Backend = None,
) -> None:
    """Time whole models: first token, tokens a second, peak memory, and what pruning itself costs.

    Two models, the reference model and a random one of realistic size (CLIP-L/14-336 tower, 576 visual tokens, decoder
    2048 wide and 16 deep), each dense in bfloat16, quantised only, pruned only, and both. Takes minutes and 6 GB.

    ```text
    quota bench e2e --json e2e.json
    quota bench e2e --model realistic --turns 2
    ```
    """
    from quota.report.progress import progress_steps
    from quota_lab.bench import bench_e2e
    from quota_lab.bench.models import NAMES

    if unknown := set(models or ()) - set(NAMES):
        raise QuotaError(f"there is no model {unknown.pop()!r} to time here; choose one of {', '.join(NAMES)}")
    with progress_steps() as progress:
        report = bench_e2e(models or NAMES, turns=turns, progress=progress)
    show(report)
    notes.print(
        "keep 30%: visual tokens left after the last cut; the average over layers is 43% in the realistic model"
    )
    write_json(json_file, report.figures())


@bench.command()
def threads(json_file: JsonFile = None, backend: Backend = None) -> None:
    """Time decoding beside 0, 1, 2 and 4 busy processes: the bundled model under W4A4KV4 and in float32.

    ```text
    quota bench threads
    GOMP_SPINCOUNT=300000 quota bench threads     # as OpenMP waits by itself
    ```
    """
    from quota.report.progress import progress_steps
    from quota_lab.bench import bench_threads

    with progress_steps() as progress:
        report = bench_threads(progress=progress)
    show(report)
    write_json(json_file, report.figures())


@bench.command()
def compress(
    model: Annotated[
        str, typer.Option(help="7b: as wide as LLaVA-1.5-7B; realistic: 2048 wide, as in `quota bench e2e`.")
    ] = "7b",
    layers: Annotated[
        list[int] | None, typer.Option(min=1, help="Depth of the decoder; give it several times. Default: 1 and 3.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Calibration questions.")] = 8,
    json_file: JsonFile = None,
    backend: Backend = None,
) -> None:
    """Measure the peak memory of `quota compress` on a random model: depth does not count.

    Beside the peak stand that at the first depth and the weights in bfloat16. Each sample adds two hidden states.

    ```text
    quota bench compress --layers 1 --layers 3 --json compress.json
    quota bench compress --model realistic --layers 2 --samples 128
    ```
    """
    from quota.report.progress import progress_steps
    from quota_lab.bench import bench_compress
    from quota_lab.bench.streaming import MODELS

    if model not in MODELS:
        raise QuotaError(f"there is no model {model!r} to compress here; choose one of {', '.join(MODELS)}")
    with progress_steps() as progress:
        report = bench_compress(layers or [1, 3], samples, MODELS[model], progress)
    show(report)
    write_json(json_file, report.figures())


@bench.command()
def serve(
    addresses: Annotated[list[str], typer.Argument(metavar="URL...", help="Servers, like http://localhost:8000.")],
    requests: Annotated[int, typer.Option(min=1, help="How many, to each server.")] = 64,
    rate: Annotated[float, typer.Option(min=0.001, help="Requests a second, on average.")] = 1.0,
    pictures: Annotated[float, typer.Option(min=0, max=1, help="Share of them that show a picture.")] = 0.75,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 32,
    soak: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Instead: N requests of clients that behave badly.")
    ] = None,
    suite: Annotated[str, typer.Option(metavar="FOLDER", help="Questions to ask; as in `quota eval`.")] = "reference",
    seed: Seed = 0,
    json_file: JsonFile = None,
) -> None:
    """Put the same load on OpenAI-compatible servers in turn: requests at random times, streamed.

    What is measured counts from when a request was due. With --soak, clients read slowly, leave, and send broken or
    oversized pictures and unknown fields; it fails if an answer is lost or memory grows.

    ```text
    quota bench serve http://localhost:8000 http://localhost:8001 --rate 2 --json serve.json
    quota bench serve http://localhost:8000 --soak 1000
    ```

    The JSON holds load, others and servers: for each requests_per_second, tokens_per_second, first_token,
    first_token_95, between_tokens, between_tokens_95 (seconds) and failures. That of a soak holds soaks: for each
    model, kinds, failures, memory_before and memory_after (bytes).
    """
    from quota.checkpoint.named import suite_folder
    from quota.report.progress import progress_steps
    from quota.samples import first_of_each_task, read_samples
    from quota_lab.bench.serving import Load, bench_serve
    from quota_lab.bench.serving import soak as soak_server
    from quota_lab.bench.serving.load import load_table
    from quota_lab.bench.serving.soak import soak_table

    questions = read_samples(suite_folder(suite))
    with progress_steps() as progress:
        if soak is None:
            load = Load(requests, rate, pictures, max_tokens, seed)
            served, figures = bench_serve(addresses, load, questions, progress)
            tables = [load_table(served, load)]
        else:
            asked = first_of_each_task(questions, 2)
            soaks = [soak_server(address, soak, asked, progress) for address in addresses]
            figures = {"soaks": [found.figures() for found in soaks]}
            tables = [soak_table(found) for found in soaks]
    for table in tables:
        console.print(table)
    write_json(json_file, figures)
    if soak is not None and (failures := [failure for found in soaks for failure in found.failures]):
        raise QuotaError(f"{len(failures)} things went wrong, the first of them: {failures[0]}")


@bench.command()
def vllm(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="A checkpoint that `quota compress` wrote.")],
    suite: Annotated[
        str, typer.Option(metavar="FOLDER", help="A folder of questions, or a suite that is shipped.")
    ] = "reference",
    questions: Annotated[int, typer.Option(min=1, help="Of the suite, evenly.")] = 300,
    json_file: JsonFile = None,
) -> None:
    """Compare a checkpoint in vLLM with itself under `quota run`.

    Answers and kept tokens that are equal, bytes of the cache, and requests that fit into a small one. Needs
    `pip install 'quota-vlm[vllm]'`.

    ```text
    quota bench vllm small/ --questions 300 --json vllm.json
    ```
    """
    from quota.checkpoint.named import suite_folder
    from quota.report.progress import progress_steps
    from quota.samples import read_samples
    from quota_lab.bench.served import bench_vllm
    from quota_lab.bench.tables import served_table

    samples = read_samples(suite_folder(suite))
    if len(samples) < questions:
        raise QuotaError(f"{suite} holds {len(samples)} questions; pass --questions {len(samples)} or fewer")
    with progress_steps() as progress:
        asked = samples[:: len(samples) // questions][:questions]
        found = bench_vllm(folder, asked, progress)
    console.print(served_table(found))
    write_json(json_file, found.figures())
