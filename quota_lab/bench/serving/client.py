"""One streamed chat completion over plain HTTP, and when each part of it came."""

from __future__ import annotations

import base64
import http.client
import io
import json
import socket
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from quota.errors import QuotaError

LONGEST_WAIT = 300.0
"""Seconds without a byte, after which an answer counts as lost."""


@dataclass
class Answer:
    """What became of one request. Times are seconds from when it was to be sent."""

    status: int | None = None
    """HTTP status; None if there was no answer."""
    text: str = ""
    """The answer, or the message of an error."""
    times: list[float] = field(default_factory=list)
    """When each part with text came."""
    tokens: int = 0
    """Of the answer: as the server counts them, else its parts."""
    ended: float = 0.0
    error: str | None = None
    """Why there is no whole answer."""

    @property
    def whole(self) -> bool:
        return self.status == 200 and self.error is None


def ask(
    address: str, body: bytes, due: float | None = None, pause: float = 0.0, leave_after: int | None = None
) -> Answer:
    """Send `body` to the server at `address` and read its answer.

    `due` is when it was to be sent (`time.perf_counter`), for a client that comes late itself; `pause` are seconds
    before each line is read; after `leave_after` parts the connection is closed. Nothing is raised: what goes wrong is
    in the answer.
    """
    began = time.perf_counter() if due is None else due
    answer = Answer()
    connection = _connection(address)
    try:
        connection.connect()
        if pause:
            # Little room: what is not read stays with the server.
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        if leave_after == 0:
            return answer
        reply = connection.getresponse()
        answer.status = reply.status
        if reply.status != 200:
            answer.text = reply.read().decode(errors="replace")
        else:
            _read(reply, answer, began, pause, leave_after)
    except (OSError, http.client.HTTPException, ValueError) as error:
        answer.error = f"{type(error).__name__}: {error}"
    finally:
        connection.close()
        answer.ended = time.perf_counter() - began
    return answer


def _read(reply: http.client.HTTPResponse, answer: Answer, began: float, pause: float, leave_after: int | None) -> None:
    done = False
    for line in reply:
        if pause:
            time.sleep(pause)
        data = line.decode().removeprefix("data: ").strip()
        if not data or data == "[DONE]":
            continue
        event = json.loads(data)
        if "error" in event:
            answer.error = str(event["error"])
            return
        for choice in event.get("choices", []):
            done = done or bool(choice.get("finish_reason"))
            if text := choice.get("delta", {}).get("content"):
                answer.text += text
                answer.times.append(time.perf_counter() - began)
                answer.tokens += 1
        if event.get("usage"):
            answer.tokens = event["usage"]["completion_tokens"]
        if leave_after is not None and len(answer.times) >= leave_after:
            return
    if not done:
        answer.error = "the answer has no end"


def request(question: str, picture: Image.Image | None = None, max_tokens: int = 32, **others: Any) -> bytes:
    """A greedy, streamed request; `others` are more fields of it."""
    content: list[dict[str, Any]] = [{"type": "text", "text": question}]
    if picture is not None:
        content.insert(0, {"type": "image_url", "image_url": {"url": picture_url(picture)}})
    body = {
        "messages": [{"role": "user", "content": content}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0,
        "max_tokens": max_tokens,
    }
    return json.dumps({**body, **others}).encode()


def picture_url(picture: Image.Image) -> str:
    """The picture itself, as an address."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def model_of(address: str) -> str:
    """The name of the (first) model of a server. Raises QuotaError for an address where none answers."""
    models = get(address, "/v1/models")
    try:
        return json.loads(models)["data"][0]["id"]
    except (ValueError, LookupError, TypeError):
        raise QuotaError(f"{address} does not say what models it has; give the address of a server") from None


def resident_bytes(address: str) -> float | None:
    """Memory of a server, as its `/metrics` say; None if they do not."""
    for line in get(address, "/metrics").splitlines():
        if line.startswith("process_resident_memory_bytes "):
            return float(line.split()[1])
    return None


def get(address: str, path: str) -> str:
    """What a server answers to a plain request. Raises QuotaError if there is none."""
    connection = _connection(address)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        raise QuotaError(f"nobody answers at {address}{path} ({error}); start a server, as `quota serve`") from None
    finally:
        connection.close()


def _connection(address: str) -> http.client.HTTPConnection:
    parts = urlsplit(address)
    try:
        if parts.scheme == "http" and parts.hostname:
            return http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=LONGEST_WAIT)
    except ValueError:
        pass
    raise QuotaError(f"{address} is no address of a server; give one like http://localhost:8000")
