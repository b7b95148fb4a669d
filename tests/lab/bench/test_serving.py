"""Load and soak of servers: what is sent, what is counted, and that a bad server is found out."""

from __future__ import annotations

import itertools
import json
import statistics
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image
from support.tiny_llava import make_samples

from quota.errors import QuotaError
from quota.samples import Sample
from quota_lab.bench.serving.client import ask, model_of
from quota_lab.bench.serving.client import request as asking
from quota_lab.bench.serving.load import Load, bench_serve
from quota_lab.bench.serving.soak import soak

SAMPLES = make_samples(2)


class Bad(BaseHTTPRequestHandler):
    """Fails at every second picture, forgets the ends of some answers, and takes whatever is asked."""

    protocol_version = "HTTP/1.1"
    asked = 0
    fails_at, forgets_at = 2, 3
    """Every how many of all requests."""

    def do_GET(self) -> None:
        self._send(200, json.dumps({"data": [{"id": "bad"}]}) if self.path == "/v1/models" else "")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        Bad.asked += 1
        if b"image_url" in body and Bad.asked % self.fails_at == self.fails_at - 1:
            self._send(500, "no")
            return
        end = "stop" if Bad.asked % self.forgets_at else None
        parts = [("a", None), ("b", None), ("", end)]
        events = [{"choices": [{"delta": {"content": text}, "finish_reason": why}]} for text, why in parts]
        self._send(200, "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n")

    def _send(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""


class Worst(Bad):
    """Fails at every picture, and forgets the ends of all answers: in whatever order several clients ask."""

    fails_at, forgets_at = 1, 1


@pytest.fixture
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    server = ThreadingHTTPServer(("localhost", 0), getattr(request, "param", Bad))
    Bad.asked = 0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://localhost:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_requests_come_at_random_times_of_the_asked_rate() -> None:
    load = Load(requests=2000, rate=4.0, pictures=0.25, max_tokens=5)
    schedule = load.schedule(SAMPLES)
    assert schedule == load.schedule(SAMPLES)
    pauses = [later - earlier for (earlier, _), (later, _) in itertools.pairwise(schedule)]
    assert statistics.mean(pauses) == pytest.approx(1 / 4, rel=0.1)
    # As spread out as they are long: that is what makes them a Poisson process.
    assert statistics.stdev(pauses) == pytest.approx(1 / 4, rel=0.15)
    bodies = [json.loads(body) for _, body in schedule]
    assert sum(len(body["messages"][0]["content"]) == 2 for body in bodies) == pytest.approx(500, rel=0.15)
    assert {(body["stream"], body["temperature"], body["max_tokens"]) for body in bodies} == {(True, 0, 5)}


def test_every_request_shows_another_picture_as_far_as_there_are_any() -> None:
    """What a server remembers of a picture would be measured in place of its work."""
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    questions = [Sample(red, "Red?"), Sample(red, "Blue?"), Sample(blue, "And here?"), Sample(red, "Round?")]
    bodies = [json.loads(body) for _, body in Load(requests=3, pictures=1.0).schedule(questions)]
    first, second, third = (body["messages"][0]["content"] for body in bodies)
    assert (first[-1]["text"], second[-1]["text"]) == ("Red?", "And here?")
    assert first[0] != second[0] and third == first


def test_an_answer_is_its_parts_and_their_times(address: str) -> None:
    answer = ask(address, asking("What is this?"))
    assert (answer.status, answer.text, answer.tokens, answer.whole) == (200, "ab", 2, True)
    assert 0 < answer.times[0] <= answer.times[1] <= answer.ended
    assert ask(address, asking("What is this?"), leave_after=1).text == "a"
    assert ask(address, asking("What is this?")).error == "the answer has no end"


def test_failures_are_counted_and_do_not_count_as_work(address: str) -> None:
    [served], figures = bench_serve([address], Load(requests=12, rate=200.0), SAMPLES)
    assert 0 < served.failures < 12
    assert figures["servers"][0]["failures"] == served.failures


@pytest.mark.parametrize("address", [Worst], indirect=True, ids=["worst"])
def test_a_soak_finds_what_a_bad_server_does(address: str) -> None:
    found = soak(address, 44, SAMPLES)
    assert any(failure.startswith("right: lost (500") for failure in found.failures)
    assert any("the answer has no end" in failure for failure in found.failures)
    assert found.before is None


@pytest.mark.parametrize("address", ["http://localhost:1", "localhost", "ftp://localhost", "http://localhost:x"])
def test_an_address_without_a_server_is_one_line(address: str) -> None:
    with pytest.raises(QuotaError, match=r"start a server|no address of a server"):
        model_of(address)
