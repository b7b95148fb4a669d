"""The page itself: Gradio's blocks, and which of them calls what of the conversation.

Answers of several pages run together, each in its own thread, up to `AT_ONCE`; comparisons have a queue of their
own, so that nobody's first answer stands behind them. Nothing is fetched from other hosts: fonts are the system's, and
what a client sends is checked before Gradio opens or fetches what it names.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports]
from gradio import themes  # pyright: ignore[reportMissingImports]
from gradio.utils import get_upload_folder  # pyright: ignore[reportMissingImports]

from quota.errors import QuotaError
from quota.serving.app.conversation import Conversation, Shown
from quota.serving.app.inputs import check_percent, check_picture, check_text
from quota.serving.app.sessions import MOST
from quota.serving.app.views import answer_view, head_view

AT_ONCE = 4
"""Answers that run together; further ones wait in the order they came."""
_LONGEST_QUEUE = 64
_THREADS = 2 * MOST
"""Things that may go on at once: one for every page that is open, and what they ask."""
_LOOK = 0.5
"""Seconds after which it is seen that a page has been closed."""
_HERE = Path(__file__).parent
_SECONDS_OF_FILES = (60, 600)
"""How often files of pictures are looked at, and how old they become: browsers have them by then."""
_FONTS = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]


def theme() -> themes.Base:
    """Gradio's own, with the fonts of the system."""
    sans, mono = _FONTS
    return themes.Default(primary_hue="indigo", neutral_hue="slate", radius_size="md", font=sans, font_mono=mono)


def styles() -> str:
    """Of what this page adds to Gradio's."""
    return (_HERE / "page.css").read_text()


def scripts() -> str:
    """For the head of the page."""
    return f"<script>{(_HERE / 'page.js').read_text()}</script>"


def build(conversation: Conversation, label: str) -> gr.Blocks:
    """The page of one model, which is called `label`."""
    budgets = conversation.budgets
    with gr.Blocks(title=f"QUOTA: {label}", analytics_enabled=False, delete_cache=_SECONDS_OF_FILES) as page:
        _html(head_view(label, budgets.own, budgets.depth), "quota-head")
        with gr.Row(elem_id="quota-columns"):
            with gr.Column(scale=5, min_width=300):
                picture = gr.Image(
                    label="Picture",
                    sources=["upload"],
                    type="filepath",
                    image_mode=None,
                    buttons=[],
                    height=320,
                    placeholder="Drop a picture here, choose one, or paste it (Ctrl+V)",
                    alt_text="The picture that is asked about",
                    elem_id="quota-picture",
                )
                # The file that came, unread: `quota.samples` is what reads pictures here.
                picture.preprocess = lambda payload: None if payload is None else payload.path
                question = gr.Textbox(
                    label="Question",
                    placeholder="What is in the picture?",
                    lines=2,
                    submit_btn=False,
                    elem_id="quota-ask",
                )
                with gr.Row():
                    send = gr.Button("Ask", variant="primary", elem_id="quota-send")
                    stop = gr.Button("Stop", variant="secondary", elem_id="quota-stop")
                slider = gr.Slider(
                    budgets.least,
                    100,
                    budgets.chosen,
                    step=1,
                    label="Budget: percent of the prefill arithmetic of visual tokens",
                    info=budgets.why_not or "100 keeps every token. Moving it asks the last question again.",
                    interactive=not budgets.why_not,
                    buttons=[],
                    elem_id="quota-budget",
                )
                recipe = _html(conversation.solve(budgets.chosen), "quota-recipe")
            with gr.Column(scale=7, min_width=300):
                message = _html("", "quota-message")
                answer = _html(answer_view("", None, None), "quota-answer-card")
                kept = _html("", "quota-kept")
        shown = [message, answer, kept]
        _wire(page, conversation, picture, question, send, stop, slider, recipe, shown)
    uploaded = partial(check_picture, uploads=Path(get_upload_folder()))
    _check_first(page, {picture: uploaded, question: check_text, slider: check_percent})
    # Gradio says so of pages that it starts itself, and asks only then whether an input's file was uploaded.
    page.has_launched = True
    page.max_threads = _THREADS
    page.queue(max_size=_LONGEST_QUEUE)
    return page


def _check_first(page: gr.Blocks, checks: dict[Any, Callable[[Any], None]]) -> None:
    """Have inputs checked before Gradio copies, or fetches, files that they name; what is wrong is one line."""
    preprocess = page.preprocess_data

    async def checked(event: Any, inputs: list[Any], *others: Any) -> Any:
        for component, value in zip(event.inputs, inputs, strict=False):
            try:
                checks[component](value)
            except QuotaError as error:
                raise gr.Error(str(error), print_exception=False) from None
        return await preprocess(event, inputs, *others)

    page.preprocess_data = checked


def _wire(
    page: gr.Blocks,
    conversation: Conversation,
    picture: gr.Image,
    question: gr.Textbox,
    send: gr.Button,
    stop: gr.Button,
    slider: gr.Slider,
    recipe: gr.HTML,
    shown: list[gr.HTML],
) -> None:
    """Let everything on the page do what it is for."""

    def look(file: str | None, request: gr.Request) -> Any:
        return conversation.look(file, _name(request))

    def ask(asked: str, percent: float, request: gr.Request) -> Iterator[Shown]:
        yield from conversation.ask(asked, percent, _name(request))

    def again(percent: float, request: gr.Request) -> Iterator[Shown]:
        yield from conversation.again(percent, _name(request))

    def compare(request: gr.Request) -> Iterator[str]:
        yield from conversation.compare(_name(request))

    def halt(request: gr.Request) -> None:
        conversation.stop(_name(request))

    async def stay(request: gr.Request) -> None:
        session = conversation.sessions.of(_name(request))
        while not session.closed:
            await asyncio.sleep(_LOOK)

    def leave(request: gr.Request) -> None:
        conversation.sessions.close(_name(request))

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    first: dict[str, Any] = {**quiet, "concurrency_limit": AT_ONCE, "concurrency_id": "answers"}
    second: dict[str, Any] = {**quiet, "concurrency_limit": AT_ONCE, "concurrency_id": "comparisons"}
    at_once: dict[str, Any] = {**quiet, "concurrency_limit": None}
    gr.on([picture.upload, picture.clear], look, picture, [picture, *shown], **at_once)
    asked = gr.on([send.click, question.submit], ask, [question, slider], shown, trigger_mode="multiple", **first)
    asked.then(compare, None, shown[1], **second)
    solved = slider.change(conversation.solve, slider, recipe, trigger_mode="always_last", **at_once)
    solved.then(again, slider, shown, **first).then(compare, None, shown[1], **second)
    stop.click(halt, None, None, **at_once)
    # Browsers never hear of what is asked at the moment when the connection of the last event closes. One event that
    # lasts as long as the page keeps it open.
    page.load(stay, None, None, **at_once)
    page.unload(leave)


def _name(request: gr.Request) -> str:
    """What Gradio calls the page that a request comes from."""
    return request.session_hash or ""


def _html(value: str, name: str) -> gr.HTML:
    return gr.HTML(value, elem_id=name, js_on_load=None, apply_default_css=False, padding=False)
