"""transformers' own OpenAI-compatible server (`transformers serve`) with one model in it, for those without vLLM.

Its options are passed on, but for those that would put something else in the place of what a checkpoint says, or
would be ignored: these are refused before anything is loaded. Requests take turns at the model.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quota.checkpoint.named import check_folder, in_one_line, load_processor, model_dtype, model_folder
from quota.errors import QuotaError
from quota.files import is_checkpoint
from quota.pruning.recipe import PruningRecipe
from quota.serving.guard import Guard
from quota.serving.requests import Served

_PAGED = "its paged cache is none of 4 bits, and knows no tokens that are dropped; requests take turns"
_REFUSED = {
    "--continuous-batching": _PAGED,
    "--cb-": _PAGED,
    "--compile": "a static cache of 16 bits would take the place of the one of 4 bits",
    "--quantization": "the checkpoint says how it is quantised",
    "--attn-implementation": "attention to the cache of 4 bits is quota's own",
    "--trust-remote-code": "code of a checkpoint is never run",
    "--model-timeout": "the model stays in memory as long as the server runs",
    "--decision-config": "only chat completions are served",
    "--enable-cors": "put a proxy in front that allows other origins",
    "--non-blocking": "the server runs until it is stopped",
}
PATIENCE = 5
"""Seconds that running answers have when the server is stopped; those that take longer are cut off."""


def serve(name: str, options: Sequence[str]) -> None:
    """Serve the model `name` until SIGINT or SIGTERM comes; `options` are those of `transformers serve`.

    Raises QuotaError for options that are refused, for a model that cannot be loaded, and without the extra `serve`.
    """
    _check(options)
    import typer
    from transformers.utils.import_utils import is_serve_available

    if not is_serve_available():
        raise QuotaError("serving needs more packages; pip install 'quota-vlm[serve]'")
    from transformers.cli.serve import Serve

    folder = model_folder(name).resolve()
    if "@" in str(folder):
        raise QuotaError(f"transformers' server takes what follows @ for a revision; rename {folder}")
    check_folder(folder)
    command = typer.Typer(add_completion=False)
    command.command()(_unstarted(Serve))
    given = [str(folder), "--non-blocking", "--log-level", "error", *_dtype(name), *options]
    with in_one_line(name):
        served = _served(folder)
        server = command(args=given, prog_name="quota serve", standalone_mode=False).server
    server.config.app = Guard(server.config.app, served)
    server.config.timeout_graceful_shutdown = PATIENCE
    with uncaught():
        server.run()


def _check(options: Sequence[str]) -> None:
    for option in options:
        for refused, reason in _REFUSED.items():
            if option.partition("=")[0] == refused or (refused.endswith("-") and option.startswith(refused)):
                raise QuotaError(f"{option} is refused: {reason}; leave it out")


def _unstarted(server: Any) -> Any:
    """transformers' command, which makes the server and leaves it to us to run it."""

    class Unstarted(server):
        def start_server(self) -> None:
            return

    return Unstarted


def _dtype(name: str) -> list[str]:
    """What `quota run` computes in."""
    dtype = model_dtype(name)
    return [] if dtype is None else ["--dtype", str(dtype).removeprefix("torch.")]


def _served(folder: Path) -> Served:
    from transformers import AutoConfig, GenerationConfig

    text = AutoConfig.from_pretrained(folder).get_text_config()
    file = folder / "generation_config.json"
    own = GenerationConfig.from_pretrained(folder).to_diff_dict() if file.is_file() else {}
    ours = is_checkpoint(folder) and (folder / "recipe.json").is_file()
    picture = PruningRecipe.load(folder / "recipe.json").reference_tokens if ours else 0
    return Served(folder.name, str(folder), load_processor(folder), own, text.max_position_embeddings, picture)


@contextmanager
def uncaught() -> Iterator[None]:
    """The server takes SIGINT and SIGTERM itself, and ends in order; behind it nobody need hear of them again."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
