"""Stands in front of transformers' server: checks what comes, and sees that every request ends in an answer.

An ASGI application. A request is read and checked (quota/serving/requests.py) before the server inside sees it; that
one always streams, and what it says is passed on as a stream or, for a client that wants it, in one piece. So either
ends at a string of the client's, either is cancelled when its client leaves, and what fails before the first token
has a status of its own. A wrong request is a 400 with one line, as is one that the model's own template or processor
refuses. A generation that fails is a defect, and a 500.

Reading is done in a thread, one request at a time, so that texts and pictures of one client do not keep all others
waiting; and what they become is made only for the request at the model and the one behind it, however many wait.

    POST /v1/chat/completions    GET /v1/models    GET /health    GET /metrics

are served; the other addresses of transformers' server load and unload models, and are none here.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from quota.errors import QuotaError, one_line
from quota.serving.metrics import Metrics
from quota.serving.requests import Chat, Served, inner_request, read_chat
from quota.serving.stops import Stops

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[dict[str, Any], Receive, Send], Awaitable[None]]

LARGEST_BODY = 32_000_000
"""Bytes of a request, pictures in base64 included."""
AT_ONCE = 2
"""Requests that are prepared or answered: one at the model, and the next."""
_CHAT = "/v1/chat/completions"
_ERROR = 'data: {"error": "'


class _Failed(Exception):
    """The server inside has refused a request (400) or failed at it (500)."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Left(Exception):
    """The client has closed its connection."""


class Guard:
    """`app` is transformers' server, which has loaded the model `served`."""

    def __init__(self, app: App, served: Served) -> None:
        self._app, self._served = app, served
        self.metrics = Metrics()
        self._turns = asyncio.Semaphore(AT_ONCE)
        # A thread cannot be stopped: what a client leaves behind ends before the next is read.
        self._reader = ThreadPoolExecutor(1)

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)

    async def _answer(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        match scope["method"], scope["path"]:
            case "POST", path if path == _CHAT:
                await self._chat(scope, receive, send)
            case "GET", "/health":
                await self._app(scope, receive, send)
            case "GET", "/metrics":
                await _reply(send, 200, self.metrics.text().encode(), b"text/plain; version=0.0.4")
            case "GET", "/v1/models":
                models = [{"id": self._served.name, "object": "model", "created": 0, "owned_by": "quota"}]
                await _reply(send, 200, _json({"object": "list", "data": models}))
            case _:
                known = f"POST {_CHAT}, GET /v1/models, /health and /metrics"
                await _reply(send, 404, _error(f"{scope['method']} {scope['path']} is not served; {known} are"))

    async def _chat(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        self.metrics.running += 1
        leaving: asyncio.Task[None] | None = None
        try:
            body = await _body(receive)
            leaving = asyncio.create_task(_watch(receive))
            chat = await _unless(leaving, self._read(read_chat, body))
            del body
            events = self._events(scope, chat, leaving)
            await (self._stream if chat.stream else self._whole)(chat, events, began, send)
            self.metrics.answered[200] += 1
        except QuotaError as error:
            await self._refuse(send, 400, str(error))
        except _Failed as error:
            await self._refuse(send, error.status, str(error))
        except _Left:
            self.metrics.left += 1
        finally:
            if leaving is not None:
                leaving.cancel()
            self.metrics.running -= 1

    def _read(self, work: Callable[[Any, Served], Any], given: Any) -> asyncio.Future[Any]:
        return asyncio.get_running_loop().run_in_executor(self._reader, work, given, self._served)

    async def _refuse(self, send: Send, status: int, message: str) -> None:
        self.metrics.answered[status] += 1
        await _reply(send, status, _error(message))

    async def _whole(self, chat: Chat, events: AsyncIterator[dict[str, Any]], began: float, send: Send) -> None:
        """The answer in one piece."""
        text, last = "", {}
        async for event in self._until_stop(chat, events, began):
            text += event["choices"][0]["delta"].get("content") or ""
            last = event
        choice = last["choices"][0]
        message = {"role": "assistant", "content": text}
        made = {"index": 0, "message": message, "finish_reason": choice["finish_reason"]}
        answer = {**last, "object": "chat.completion", "choices": [made]}
        await _reply(send, 200, _json(answer))

    async def _stream(self, chat: Chat, events: AsyncIterator[dict[str, Any]], began: float, send: Send) -> None:
        """The answer as it comes. Its status waits for the first token."""
        started = False
        try:
            async for event in self._until_stop(chat, events, began):
                if not started:
                    started = True
                    headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                usage = event.pop("usage", None)
                await _more(send, b"data: " + _json(event) + b"\n\n")
                if usage and chat.usage:
                    await _more(send, b"data: " + _json({**event, "choices": [], "usage": usage}) + b"\n\n")
        except _Failed as error:
            if not started:
                raise
            # Too late for a status.
            await _more(send, b"data: " + _error(str(error)) + b"\n\n")
        await _more(send, b"data: [DONE]\n\n")
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _until_stop(
        self, chat: Chat, events: AsyncIterator[dict[str, Any]], began: float
    ) -> AsyncIterator[dict[str, Any]]:
        """The events of an answer up to one of the client's strings; the last has a reason to end."""
        stops, first = Stops(chat.stops), True
        try:
            async for event in events:
                choice = event["choices"][0]
                event["model"], ended = self._served.name, choice.get("finish_reason")
                text = stops.feed(choice["delta"].get("content") or "")
                if ended and not stops.met:
                    text += stops.rest()
                elif stops.met:
                    choice["finish_reason"] = "stop"
                if first and not choice["delta"].get("role"):
                    first = False
                    self.metrics.first_token(time.perf_counter() - began)
                choice["delta"]["content"] = text
                if usage := event.get("usage"):
                    self.metrics.prompt_tokens += usage["prompt_tokens"]
                    self.metrics.answer_tokens += usage["completion_tokens"]
                if text or choice.get("finish_reason"):
                    yield event
                if stops.met:
                    return
        finally:
            await events.aclose()  # type: ignore[attr-defined]

    async def _events(
        self, scope: dict[str, Any], chat: Chat, leaving: asyncio.Task[None]
    ) -> AsyncIterator[dict[str, Any]]:
        """What the server inside says to `chat`. Ends with it, and it with this. Raises QuotaError, _Failed, _Left."""
        queue: asyncio.Queue[dict[str, Any] | Exception | None] = asyncio.Queue()
        working = asyncio.create_task(self._ask(scope, chat, queue, leaving))
        leaving.add_done_callback(lambda _: queue.put_nowait(_Left()))
        try:
            while (event := await queue.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            working.cancel()
            with suppress(asyncio.CancelledError):
                await working

    async def _ask(
        self, scope: dict[str, Any], chat: Chat, queue: asyncio.Queue[Any], leaving: asyncio.Task[None]
    ) -> None:
        status, text = 0, b""
        given: list[bytes] = []

        async def receive() -> dict[str, Any]:
            if given:
                return {"type": "http.request", "body": given.pop(), "more_body": False}
            # Behind the body nothing comes: who leaves has this task cancelled.
            return await asyncio.Event().wait()  # pyright: ignore[reportReturnType]

        async def send(message: dict[str, Any]) -> None:
            nonlocal status, text
            status = message.get("status", status)
            text += message.get("body", b"")
            while status == 200 and b"\n\n" in text:
                line, _, text = text.partition(b"\n\n")
                queue.put_nowait(_event(line.decode()))

        # Held as long as the server inside speaks, which does not wait for a client that listens slowly.
        async with self._turns:
            try:
                given.append(await self._read(inner_request, chat))
            except Exception as error:
                # Whoever reads the queue tells a wrong request from a defect.
                queue.put_nowait(error)
                return
            # Pictures in base64, which would stay until the answer ends.
            chat.messages.clear()
            if leaving.done():
                return
            length = str(len(given[0])).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", length)]
            try:
                await self._app({**scope, "headers": headers}, receive, send)
            except Exception as error:
                # Raised before the first token: what the model's template or processor says of the request.
                queue.put_nowait(_Failed(400, f"{type(error).__name__}: {one_line(str(error))}"))
            else:
                queue.put_nowait(None if status == 200 else _Failed(400, text.decode(errors="replace")))


def _event(line: str) -> dict[str, Any] | Exception:
    if line.startswith(_ERROR):
        # Not JSON if there are quotation marks in it.
        return _Failed(500, line.removeprefix(_ERROR).removesuffix('"}'))
    return json.loads(line.removeprefix("data: "))


async def _watch(receive: Receive) -> None:
    """Ends when the client leaves."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _unless(leaving: asyncio.Task[None], working: asyncio.Future[Any]) -> Any:
    """What `working` makes. Raises _Left if the client leaves before."""
    await asyncio.wait({leaving, working}, return_when=asyncio.FIRST_COMPLETED)
    if working.done():
        return working.result()
    working.cancel()
    raise _Left


async def _body(receive: Receive) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Left
        size += len(message.get("body", b""))
        # What is too long is read to its end, so that its client hears why, and not kept.
        if size <= LARGEST_BODY:
            parts.append(message.get("body", b""))
        if not message.get("more_body"):
            break
    if size > LARGEST_BODY:
        raise QuotaError(f"the request has {size:,} bytes, at most {LARGEST_BODY:,} are read; send smaller pictures")
    return b"".join(parts)


async def _reply(send: Send, status: int, body: bytes, kind: bytes = b"application/json") -> None:
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _more(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _error(message: str) -> bytes:
    return _json(
        {"error": {"message": one_line(message), "type": "invalid_request_error", "param": None, "code": None}}
    )
