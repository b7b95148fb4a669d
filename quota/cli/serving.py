"""The command that serves a checkpoint to others: serve."""

from __future__ import annotations

import typer

from quota.cli.app import Backend, Model, app


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
