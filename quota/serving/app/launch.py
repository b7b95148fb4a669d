"""Starts the page and ends it in order: `quota app`.

Gradio builds the page, uvicorn serves it. A policy in every answer tells browsers to fetch nothing from other hosts,
and Gradio's own messages home are off: the page works without a network.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from importlib.util import find_spec
from typing import Any

from quota.checkpoint.named import load_model
from quota.errors import QuotaError
from quota.serving.app.conversation import Conversation
from quota.serving.app.pictures import LARGEST_FILE
from quota.serving.serve import PATIENCE, listening, uncaught

_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'self'; frame-ancestors 'self'"
)
_POLICY_OF_FILES = "default-src 'none'; sandbox"
"""Opened by itself, a file runs nothing: an SVG that somebody has uploaded is no page of ours."""
_FILES = re.compile(r"/file[=/]")
_ADDRESSES = re.compile(r"/(file[=/]|proxy=)/*https?:", re.IGNORECASE)
"""Of files that Gradio fetches from elsewhere for whoever asks."""


def run_app(name: str, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve a page on which the model `name` is asked, until SIGINT or SIGTERM comes.

    `ready` is called with its address. Raises QuotaError without the extra `app`, for a model that cannot be loaded or
    keeps every token, and for an address that cannot be had.
    """
    if find_spec("gradio") is None:
        raise QuotaError('the page needs more packages; pip install "quota-vlm[app]"')
    model, processor, label = load_model(name)
    conversation = Conversation(model, processor)
    with ExitStack() as running:
        # Read by Gradio when it is imported and when a page is made.
        os.environ["GRADIO_TEMP_DIR"] = running.enter_context(tempfile.TemporaryDirectory(prefix="quota-app-"))
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        import uvicorn  # pyright: ignore[reportMissingImports]

        app, end_streams = application(conversation, label)
        address = running.enter_context(listening(host, port))
        conversation.warm_up()
        ready(f"http://{host}:{address.getsockname()[1]}")

        class Server(uvicorn.Server):
            async def shutdown(self, sockets: Any = None) -> None:
                # Open pages hold a connection for as long as they live.
                conversation.sessions.close_all()
                end_streams()
                await super().shutdown(sockets)

        server = Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=PATIENCE))
        with uncaught():
            server.run([address])


def application(conversation: Conversation, label: str) -> tuple[Any, Callable[[], None]]:
    """The page as an ASGI application, and what ends the connections that open pages hold."""
    import gradio as gr  # pyright: ignore[reportMissingImports]
    from fastapi import FastAPI  # pyright: ignore[reportMissingImports]

    from quota.serving.app.page import build, scripts, styles, theme

    hidden: dict[str, Any] = {"docs_url": None, "redoc_url": None, "openapi_url": None}
    served = gr.mount_gradio_app(
        FastAPI(**hidden),
        build(conversation, label),
        path="/",
        app_kwargs=hidden,
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=LARGEST_FILE,
        ssr_mode=False,
        pwa=False,
        enable_monitoring=False,
        mcp_server=False,
        theme=theme(),
        css=styles(),
        head=scripts(),
    )
    inner: Any = served.routes[-1]
    return _Policed(served), inner.app.stop_event.set


class _Policed:
    """Adds the policy to every answer, and lets nobody have the server fetch something."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        path = scope.get("path", "")
        policy = _POLICY_OF_FILES if _FILES.search(path) else _POLICY

        async def send_policed(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"content-security-policy", policy.encode())]}
            await send(message)

        if _ADDRESSES.search(path):
            await send_policed({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": b"no address is fetched\n"})
        else:
            await self._app(scope, receive, send_policed)
