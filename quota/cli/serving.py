"""The commands that serve a checkpoint to others: serve, app."""

from __future__ import annotations

from typing import Annotated

import typer

from quota.cli.app import Backend, Model, app, notes


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(context: typer.Context, model: Model, backend: Backend = None) -> None:
    """Serve MODEL by transformers' OpenAI-compatible server: chat with pictures, streamed or not.

    It answers what `quota run` answers. Options of `transformers serve` are passed on (`--host`, `--port`, `--device`),
    but for those that would replace what the checkpoint says, which are refused. Needs the extra `serve`.

    ```text
    quota serve small/ --port 8000
    curl localhost:8000/health                     (and /metrics, /v1/models, /v1/chat/completions)
    ```
    """
    from quota.serving.serve import serve as serve_model

    serve_model(model, context.args)


@app.command(name="app")
def serve_page(
    model: Annotated[str, typer.Argument(metavar="OUT", help="A checkpoint that `quota compress` wrote.")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "localhost",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    backend: Backend = None,
) -> None:
    """Serve a page on which people ask OUT about pictures, and see what each cut of its recipe keeps.

    A slider gives every page a budget of its own; OUT itself stays as it is. Beside the answer stands the one that
    every token would have given, with the time to the first token, tokens a second and the bytes of the cache. Needs
    the extra `app`.

    quota app small/ --port 8000
    """
    from quota.serving.app.launch import run_app

    run_app(model, host, port, lambda address: notes.print(f"asking {model} at {address} (Ctrl-C ends it)"))
