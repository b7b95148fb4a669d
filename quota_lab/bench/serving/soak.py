"""Whether a server stands its clients: those that read slowly, leave, send what is broken, or what is none of its
fields.

The kinds take turns, several at once. A right request must get the answer that it got before the soak; a wrong one
must be answered by a status from 400 to 499, or by an answer where a server takes what others refuse; those who leave
must leave nothing behind: at the end nothing runs, and memory is what it was after the first tenth.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from rich.table import Table

from quota.progress import Steps, silent
from quota.report.tables import WholeTable
from quota.samples import Sample
from quota_lab.bench.serving.client import Answer, ask, get, model_of, picture_url, request, resident_bytes

AT_ONCE = 8
GROWTH = 0.05
"""Of memory, that still counts as flat."""
_SLOW = 0.02
_OVERSIZED = (6000, 5000)
_TRIES = 60


@dataclass
class Soaked:
    """What a soak found."""

    model: str
    kinds: dict[str, Counter[str]] = field(default_factory=dict)
    """For each kind of request, how often it ended how."""
    failures: list[str] = field(default_factory=list)
    """One line for each thing that must not be."""
    before: float | None = None
    """Bytes of memory after the first tenth; None if the server does not say."""
    after: float | None = None

    def figures(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "kinds": {kind: dict(ends) for kind, ends in self.kinds.items()},
            "failures": self.failures,
            "memory_before": self.before,
            "memory_after": self.after,
        }


def soak(address: str, count: int, questions: Sequence[Sample], progress: Steps = silent) -> Soaked:
    """`count` requests of all kinds to one server. Raises QuotaError for an address where no server answers."""
    found = Soaked(model_of(address))
    kinds = _kinds(address, questions)
    found.kinds = {kind: Counter() for kind in kinds}
    lock, done = threading.Lock(), 0

    def one(number: int) -> None:
        nonlocal done
        kind = list(kinds)[number % len(kinds)]
        end, failure = kinds[kind](number // len(kinds))
        with lock:
            done += 1
            found.kinds[kind][end] += 1
            if failure:
                found.failures.append(f"{kind}: {end}")
            progress("soaking", done, count)

    warm = max(1, count // 10)
    with ThreadPoolExecutor(AT_ONCE) as clients:
        list(clients.map(one, range(warm)))
        found.before = _settled(address)
        list(clients.map(one, range(warm, count)))
        found.after = _settled(address)
    if found.before and found.after and found.after > (1 + GROWTH) * found.before:
        found.failures.append(f"memory grew from {found.before / 1e6:.0f} to {found.after / 1e6:.0f} MB")
    return found


Ended = tuple[str, bool]
"""How a request ended, and whether it must not have."""


def _kinds(address: str, questions: Sequence[Sample]) -> dict[str, Callable[[int], Ended]]:
    """What each kind does for the n-th time. Right ones are asked once before."""
    asked = [request(one.question, one.pictures()[0], 24) for one in questions]
    asked += [request(one.question, None, 24) for one in questions]
    expected = [ask(address, body).text for body in asked]

    def right(turn: int, **how: Any) -> Ended:
        body = turn % len(asked)
        return _same(ask(address, asked[body], **how), expected[body])

    def leave(turn: int, after: int) -> Ended:
        ask(address, asked[turn % len(asked)], leave_after=after)
        return "left", False

    oversized = request("What is this?", Image.new("RGB", _OVERSIZED), 4)
    address_of_one = picture_url(questions[0].pictures()[0])
    wrong = {
        "oversized picture": oversized,
        "half a picture": _shown(address_of_one[: len(address_of_one) // 2 // 4 * 4]),
        "no base64": _shown(f"{address_of_one[:40]}???"),
        "unknown field": request("What is this?", None, 4, no_such_field=1),
        "no JSON": asked[0][:-1],
        "hot": request("What is this?", None, 4, temperature=-1),
        "endless": request("What is this?", None, 10**9),
    }
    return {
        "right": right,
        "slow reader": lambda turn: right(turn, pause=_SLOW),
        "leaves at once": lambda turn: leave(turn, 0),
        "leaves in the middle": lambda turn: leave(turn, 1),
        **{name: lambda turn, body=body: _refused(ask(address, body)) for name, body in wrong.items()},
    }


def _shown(url: str) -> bytes:
    body = json.loads(request("What is this?", None, 4))
    body["messages"][0]["content"].insert(0, {"type": "image_url", "image_url": {"url": url}})
    return json.dumps(body).encode()


def _same(answer: Answer, expected: str) -> Ended:
    if not answer.whole:
        return f"lost ({answer.status}, {answer.error or answer.text[:80]})", True
    return ("answered", False) if answer.text == expected else ("another answer", True)


def _refused(answer: Answer) -> Ended:
    if answer.status is None:
        return f"lost ({answer.error})", True
    return str(answer.status), not (answer.whole or 400 <= answer.status < 500)


def _settled(address: str) -> float | None:
    """Memory of the server, once it has nothing to do (as far as it says)."""
    for _ in range(_TRIES):
        lines = get(address, "/metrics").splitlines()
        running = [line for line in lines if line.startswith(("quota_requests_running", "vllm:num_requests_running"))]
        # The first tells of all that have been sent; those that have left are noticed a little later.
        if all(float(line.split()[-1]) == 0 for line in running):
            break
        time.sleep(0.5)
    return resident_bytes(address)


def soak_table(found: Soaked) -> Table:
    """One line for each kind of request."""
    table = WholeTable(f"{found.model}: {sum(map(Counter.total, found.kinds.values()))} requests")
    table.add_column("kind")
    table.add_column("ended")
    for kind, ends in found.kinds.items():
        table.add_row(kind, ", ".join(f"{end}: {count}" for end, count in sorted(ends.items())))
    return table
