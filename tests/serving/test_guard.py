"""What stands in front of transformers' server, with something else behind it: who waits for whom, and what is kept."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from PIL import Image
from support.tiny_llava import processor

from quota.serving import guard
from quota.serving.guard import AT_ONCE, Guard
from quota.serving.lengths import Length
from quota.serving.requests import Served, inner_request, read_chat

SERVED = Served("small", "/models/small", {}, Length(processor(), 300))
USAGE = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}


class Inner:
    """Answers with a word, when it may."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.may = asyncio.Event()
        self.running = 0

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        self.bodies.append(json.loads((await receive())["body"]))
        self.running += 1
        try:
            await send({"type": "http.response.start", "status": 200})
            await self.may.wait()
            for delta, more in (
                ({"role": "assistant"}, {}),
                ({"content": "word"}, {}),
                ({}, {"usage": USAGE}),
            ):
                choice = {"index": 0, "delta": delta, "finish_reason": "stop" if more else None}
                event = {"id": "1", "choices": [choice], **more}
                await send({"type": "http.response.body", "body": f"data: {json.dumps(event)}\n\n".encode()})
        finally:
            self.running -= 1


class Client:
    """One request, whose client may leave."""

    def __init__(self, app: Guard, body: bytes) -> None:
        self.left = asyncio.Event()
        self.sent: list[dict[str, Any]] = []
        given = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if given:
                return given.pop()
            await self.left.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            self.sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions"}
        self.task = asyncio.create_task(app(scope, receive, send))

    async def ended(self) -> tuple[int, str]:
        await asyncio.wait_for(self.task, 20)
        text = b"".join(message.get("body", b"") for message in self.sent).decode()
        return (self.sent[0]["status"] if self.sent else 0), text


def ask(text: str = "w20", pictures: int = 0, **others: Any) -> bytes:
    file = io.BytesIO()
    Image.new("1", (64, 64)).save(file, "PNG")
    url = {"url": f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"}
    content = [*[{"type": "image_url", "image_url": url}] * pictures, {"type": "text", "text": text}]
    return json.dumps({"messages": [{"role": "user", "content": content}], **others}).encode()


def running(test: Callable[[Guard, Inner], Awaitable[None]]) -> Callable[[], None]:
    async def run() -> None:
        inner = Inner()
        await test(Guard(inner, SERVED), inner)

    def started() -> None:
        asyncio.run(run())

    started.__name__ = test.__name__
    return started


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not happened():
            await asyncio.sleep(0.01)


@running
async def test_a_request_is_answered_in_one_piece_or_streamed(app: Guard, inner: Inner) -> None:
    inner.may.set()
    status, text = await Client(app, ask(pictures=1)).ended()
    answer = json.loads(text)
    assert status == 200 and answer["choices"][0]["message"]["content"] == "word" and answer["usage"] == USAGE
    status, text = await Client(app, ask(stream=True)).ended()
    assert status == 200 and text.endswith("data: [DONE]\n\n")
    assert [status for status, _ in [await Client(app, b"{").ended()]] == [400]


@running
async def test_a_stream_tells_tokens_only_if_asked(app: Guard, inner: Inner) -> None:
    inner.may.set()
    for options in ({}, {"stream_options": {}}, {"stream_options": {"include_usage": False}}):
        assert "usage" not in (await Client(app, ask(stream=True, **options)).ended())[1]
    _, text = await Client(app, ask(stream=True, stream_options={"include_usage": True})).ended()
    *events, last, done = [line.removeprefix("data: ") for line in text.strip().split("\n\n")]
    assert done == "[DONE]" and not any("usage" in event for event in events)
    assert (json.loads(last)["usage"], json.loads(last)["choices"]) == (USAGE, [])


def test_reading_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    may = threading.Event()

    def read(body: bytes, served: Served) -> Any:
        if b"slow" in body:
            may.wait(20)
        return read_chat(body, served)

    monkeypatch.setattr(guard, "read_chat", read)

    @running
    async def test(app: Guard, inner: Inner) -> None:
        inner.may.set()
        began, client = time.perf_counter(), Client(app, ask("slow"))
        await asyncio.sleep(0.1)
        assert time.perf_counter() - began < 10 and not client.task.done()
        may.set()
        assert (await client.ended())[0] == 200

    test()


def test_few_are_prepared_while_many_wait_and_who_leaves_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared: list[int] = []

    def prepare(chat: Any, served: Served) -> bytes:
        prepared.append(len(chat.messages[0].content))
        return inner_request(chat, served)

    monkeypatch.setattr(guard, "inner_request", prepare)

    @running
    async def test(app: Guard, inner: Inner) -> None:
        first = [Client(app, ask()) for _ in range(AT_ONCE)]
        await until(lambda: inner.running == AT_ONCE)
        waiting = [Client(app, ask(pictures=2)) for _ in range(4)]
        await asyncio.sleep(0.2)
        assert len(prepared) == AT_ONCE
        for client in waiting[:3]:
            client.left.set()
        for client in waiting[:3]:
            assert await client.ended() == (0, "")
        assert app.metrics.left == 3
        # One that is answered leaves as well: its turn is over.
        first[0].left.set()
        await until(lambda: len(inner.bodies) == AT_ONCE + 1)
        inner.may.set()
        assert [(await client.ended())[0] for client in (first[1], waiting[3])] == [200, 200]
        assert prepared == [*[1] * AT_ONCE, 3]
        assert app.metrics.running == 0 and inner.running == 0

    test()


def test_who_leaves_while_it_is_read_never_reaches_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    may, preparing = threading.Event(), threading.Event()

    def prepare(chat: Any, served: Served) -> bytes:
        preparing.set()
        may.wait(20)
        return inner_request(chat, served)

    monkeypatch.setattr(guard, "inner_request", prepare)

    @running
    async def test(app: Guard, inner: Inner) -> None:
        client = Client(app, ask())
        await until(preparing.is_set)
        client.left.set()
        assert await client.ended() == (0, "")
        may.set()
        inner.may.set()
        assert (await Client(app, ask()).ended())[0] == 200
        assert len(inner.bodies) == 1

    test()


def test_a_defect_is_no_wrong_request(monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(chat: Any, served: Served) -> bytes:
        raise ZeroDivisionError

    monkeypatch.setattr(guard, "inner_request", prepare)

    @running
    async def test(app: Guard, inner: Inner) -> None:
        with pytest.raises(ZeroDivisionError):
            await Client(app, ask()).ended()

    test()
