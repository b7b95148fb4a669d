"""What the commands share: the application, the streams, arguments that several of them take."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from quota.version import __version__

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
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"quota {__version__}")
        raise typer.Exit


@app.callback()
def quota(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version, and end.")
    ] = False,
) -> None:
    """Options of `quota` itself; what it is for stands above."""


# Without markup: answers and paths may hold brackets.
console = Console(markup=False)
notes = Console(stderr=True, markup=False, highlight=False)


Model = Annotated[str, typer.Argument(metavar="MODEL", help="A hub id, a folder, or `reference`.")]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write all figures here.")]
Seed = Annotated[int, typer.Option(help="Seed of everything that is drawn.")]


def _in_force(module: str) -> Callable[[typer.Context, str | None], None]:
    """Calls the module's `use` with the name that an option gives, for as long as the command runs."""

    def enter(context: typer.Context, name: str | None) -> None:
        context.with_resource(import_module(module).use(name))

    return enter


# A command's function has no use for either name.
Backend = Annotated[
    str | None,
    typer.Option(
        "--backend",
        metavar="NAME",
        callback=_in_force("quota.ops"),
        expose_value=False,
        help="Force one operator backend (see `quota doctor`); the default is the fastest that can run.",
    ),
]


Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="NAME",
        callback=_in_force("quota.ops.device"),
        expose_value=False,
        help="Where the model runs: `cpu` (the default), `cuda`, `cuda:1`.",
    ),
]


def write_json(file: Path | None, figures: dict[str, Any]) -> None:
    from quota.files import write_atomically

    if file is not None:
        write_atomically(file, json.dumps(figures, indent=2, allow_nan=False) + "\n")
