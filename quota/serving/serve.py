"""transformers' own OpenAI-compatible server (`transformers serve`) with one model in it, for those without vLLM.

Its options are passed on, but for those that would put something else in the place of what a checkpoint says, or
would be ignored: these are refused before anything is loaded, as are mistaken ones and an address that cannot be had.
Requests take turns at the model.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import typer
from transformers.utils.logging import log_levels
from typer._click.exceptions import ClickException

from quota.checkpoint.named import check_folder, in_one_line, load_processor, model_dtype, model_folder
from quota.errors import QuotaError
from quota.files import parse_json
from quota.ops.device import use
from quota.serving.guard import Guard
from quota.serving.lengths import Length
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

    Raises QuotaError for options that are refused or mistaken, for an address that cannot be had, for a model that
    cannot be loaded, and without the extra `serve`.
    """
    _check(options)
    from transformers.utils.import_utils import is_serve_available

    if not is_serve_available():
        raise QuotaError("serving needs more packages; pip install 'quota-vlm[serve]'")
    from transformers.cli.serve import Serve

    folder = model_folder(name).resolve()
    if "@" in str(folder):
        raise QuotaError(f"transformers' server takes what follows @ for a revision; rename {folder}")
    check_folder(folder)
    # All commands compute on the CPU unless told otherwise; this server would take any GPU that it finds.
    given = _given(Serve, [str(folder), "--log-level", "error", "--device", "cpu", *_dtype(name), *options])
    with listening(given["host"], given["port"]) as address:
        with in_one_line(name), use(None if given["device"] == "auto" else given["device"]):
            made = _unstarted(Serve)(**{**given, "non_blocking": True})
            served = _served(folder, made._chat_handler.chat_template_kwargs)
        server = made.server
        server.config.app = Guard(server.config.app, served)
        server.config.timeout_graceful_shutdown = PATIENCE
        with uncaught():
            server.run([address])


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens at an address, closed behind the block. QuotaError if that cannot be had."""
    if not 0 <= port <= 65535:
        raise QuotaError(f"--port must be from 0 to 65535, got {port}")
    try:
        made = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise QuotaError(f"cannot listen on {host}:{port}: {reason}; choose another --host or --port") from None
    with made:
        yield made


def _check(options: Sequence[str]) -> None:
    for option in options:
        for refused, reason in _REFUSED.items():
            if option.partition("=")[0] == refused or (refused.endswith("-") and option.startswith(refused)):
                raise QuotaError(f"{option} is refused: {reason}; leave it out")


def _given(server: Any, options: Sequence[str]) -> dict[str, Any]:
    """What transformers' own command line makes of `options`. QuotaError for what it refuses, or fails at later."""

    class Given(server):
        @wraps(server.__init__)
        def __init__(self, **values: Any) -> None:
            self.values = values

    command = typer.Typer(add_completion=False, context_settings={"help_option_names": []})
    command.command()(Given)
    try:
        given = command(args=list(options), prog_name="quota serve", standalone_mode=False).values
    except ClickException as error:
        raise QuotaError(f"{error.format_message().rstrip('.')}; correct it, or leave it out") from None
    if given["log_level"].lower() not in log_levels:
        raise QuotaError(f"--log-level must be one of {', '.join(log_levels)}, got {given['log_level']}")
    try:
        if not isinstance(parse_json(given["chat_template_kwargs"] or "{}"), dict):
            raise ValueError("no JSON object")
    except ValueError as error:
        raise QuotaError(f"--chat-template-kwargs is {error}") from None
    return given


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


def _served(folder: Path, template: dict[str, Any]) -> Served:
    from transformers import AutoConfig, GenerationConfig

    text = AutoConfig.from_pretrained(folder).get_text_config()
    file = folder / "generation_config.json"
    own = GenerationConfig.from_pretrained(folder).to_diff_dict() if file.is_file() else {}
    length = Length(load_processor(folder), text.max_position_embeddings)
    return Served(folder.name, str(folder), own, length, template)


@contextmanager
def uncaught() -> Iterator[None]:
    """The server takes SIGINT and SIGTERM itself, and ends in order; behind it nobody need hear of them again."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
