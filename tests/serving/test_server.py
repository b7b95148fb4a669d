"""The whole server, with a model in it, as clients of OpenAI's meet it. `make test-serve` runs this; it needs
packages."""

from __future__ import annotations

import base64
import io
import json
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.served import Served, fetch, served_folder

from quota.checkpoint.named import load_model
from quota.cli.questions import LONGEST_ANSWER
from quota.prompts import answer
from quota.samples import Sample, first_of_each_task, read_samples
from quota_lab import reference

openai = pytest.importorskip("openai", reason="run by `make test-serve`")
pytest.importorskip("fastapi", reason="run by `make test-serve`")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served(reference_folder: Path) -> Iterator[Served]:
    """A server of the bundled model, compressed."""
    with served_folder(reference_folder) as found:
        yield found


@pytest.fixture(scope="module")
def questions() -> list[Sample]:
    return first_of_each_task(read_samples(reference.suite_path()), 2)


@pytest.fixture(scope="module")
def expected(reference_folder: Path, questions: list[Sample]) -> list[str]:
    """What `quota run` answers."""
    model, processor, _ = load_model(str(reference_folder))
    return [answer(model, processor, sample, LONGEST_ANSWER) for sample in questions]


def client(served: Served) -> Any:
    return openai.OpenAI(base_url=f"{served[0]}/v1", api_key="none", max_retries=0)


def messages(sample: Sample) -> list[dict[str, Any]]:
    file = io.BytesIO()
    sample.pictures()[0].save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    picture = {"type": "image_url", "image_url": {"url": url}}
    return [{"role": "user", "content": [picture, {"type": "text", "text": sample.question}]}]


def ask(served: Served, sample: Sample, stream: bool = False, **options: Any) -> str:
    options = {"model": "reference", "messages": messages(sample), "temperature": 0, **options}
    said = client(served).chat.completions.create(stream=stream, **options)
    if not stream:
        return said.choices[0].message.content
    return "".join(chunk.choices[0].delta.content or "" for chunk in said)


def metric(served: Served, name: str) -> float:
    [line] = [line for line in fetch(f"{served[0]}/metrics").splitlines() if line.startswith(f"{name} ")]
    return float(line.rpartition(" ")[2])


def test_twelve_pictures_get_the_answers_of_quota_run_streamed_or_not(
    served: Served, questions: list[Sample], expected: list[str]
) -> None:
    assert len(questions) == 12
    answers = [ask(served, sample, stream=number % 2 == 1).strip() for number, sample in enumerate(questions)]
    assert answers == expected


def test_it_says_what_model_it_has(served: Served) -> None:
    assert [model.id for model in client(served).models.list()] == ["reference"]


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_ends_at_a_string_of_the_clients(
    stream: bool, served: Served, questions: list[Sample], expected: list[str]
) -> None:
    sample, whole = max(zip(questions, expected, strict=True), key=lambda pair: len(pair[1]))
    stop = whole[-2:]
    assert ask(served, sample, stream, stop=stop).strip() == whole[: whole.index(stop)].strip()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1},
        {"extra_body": {"unknown": 1}},
        {"max_tokens": 10**9},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "/etc/passwd"}}]}]},
        {"model": "another"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_a_wrong_request_is_a_400_with_one_line(
    options: dict[str, Any], stream: bool, served: Served, questions: list[Sample]
) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        ask(served, questions[0], stream, **options)
    message = raised.value.response.json()["error"]["message"]
    assert 0 < len(message) <= 300
    assert "\n" not in message


def test_a_body_too_large_is_a_400_as_well(served: Served) -> None:
    with pytest.raises(openai.BadRequestError, match=r"at most 32,000,000 are read"):
        ask(served, Sample(Image.effect_noise((4000, 3000), 90).convert("RGB"), "What is this?"))


def test_other_addresses_are_not_served(served: Served) -> None:
    for path in ("/reset", "/load_model", "/v1/responses", "/docs"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            fetch(urllib.request.Request(f"{served[0]}{path}", data=b"{}"))


def test_who_leaves_is_forgotten(served: Served, questions: list[Sample]) -> None:
    left = metric(served, "quota_requests_left_total")
    body = json.dumps({"messages": messages(questions[0]), "stream": True, "temperature": 2, "max_tokens": 60}).encode()
    host, _, port = served[0].removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
    deadline = time.monotonic() + 30
    while metric(served, "quota_requests_left_total") == left or metric(served, "quota_requests_running"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert ask(served, questions[0])


def test_sigterm_ends_it_cleanly(served: Served) -> None:
    _, running = served
    running.send_signal(signal.SIGTERM)
    said, _ = running.communicate(timeout=120)
    assert running.returncode == 0
    assert "Traceback" not in said
    assert "500 Internal" not in said
