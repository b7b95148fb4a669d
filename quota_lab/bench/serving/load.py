"""What users see of a server that many of them ask at once.

Requests come as a Poisson process: the pauses between them are exponential, and do not wait for answers, so a server
that is too slow has a queue that grows. Every server gets the same requests at the same times. What is measured
counts from when a request was due, so a queue in front of the server counts as well.

    first token       seconds until the first part of an answer is there
    between tokens    seconds from one part of an answer to the next
    requests/s        whole answers over the time from the first request to the last answer
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

from rich.table import Table

from quota.progress import Steps, silent
from quota.report.tables import WholeTable
from quota.samples import Sample
from quota_lab.bench.busy import Others
from quota_lab.bench.serving.client import Answer, ask, model_of, request


@dataclass(frozen=True)
class Load:
    """Who asks what, and how often."""

    requests: int = 64
    rate: float = 1.0
    """Of requests a second, on average."""
    pictures: float = 0.75
    """Share of requests that show one."""
    max_tokens: int = 32
    seed: int = 0

    def schedule(self, questions: Sequence[Sample]) -> list[tuple[float, bytes]]:
        """(seconds after the first, request) of each, about another picture each as far as there are any.

        Servers remember a picture, and the prompt that begins with it.
        """
        chance, due, made = Random(f"load {self.seed}"), 0.0, []
        first: dict[str, Sample] = {}
        for sample in questions:
            first.setdefault(str(sample.image), sample)
        asked = list(first.values())
        for number in range(self.requests):
            sample = asked[number % len(asked)]
            picture = sample.pictures()[0] if chance.random() < self.pictures else None
            made.append((due, request(sample.question, picture, self.max_tokens)))
            due += chance.expovariate(self.rate)
        return made


@dataclass(frozen=True)
class Served:
    """What one server did. Seconds; None if there was nothing to measure."""

    address: str
    model: str
    requests_per_second: float
    tokens_per_second: float
    first_token: float | None
    first_token_95: float | None
    between_tokens: float | None
    between_tokens_95: float | None
    failures: int
    """Requests without a whole answer."""


def bench_serve(
    addresses: Sequence[str], load: Load, questions: Sequence[Sample], progress: Steps = silent
) -> tuple[list[Served], dict[str, Any]]:
    """Put `load` on each server in turn; returns what they did, and what `--json` writes.

    Raises QuotaError for an address where no server answers.
    """
    models = [model_of(address) for address in addresses]
    schedule, others = load.schedule(questions), Others()
    served = []
    for address, model in zip(addresses, models, strict=True):
        # A first answer takes longer than any other.
        ask(address, schedule[0][1])
        answers = _run(address, schedule, lambda done, name=model: progress(f"asking {name}", done, load.requests))
        served.append(_figures(address, model, answers))
    return served, {"load": asdict(load), "others": others.share(), "servers": [asdict(one) for one in served]}


def _run(address: str, schedule: Sequence[tuple[float, bytes]], progress: Any) -> list[tuple[float, Answer]]:
    """(when it was due, what came) of every request."""
    answers: list[tuple[float, Answer]] = []
    began = time.perf_counter()

    def one(due: float, body: bytes) -> None:
        answers.append((due, ask(address, body, began + due)))
        progress(len(answers))

    waiting = []
    for due, body in schedule:
        time.sleep(max(0.0, began + due - time.perf_counter()))
        waiting.append(threading.Thread(target=one, args=(due, body), daemon=True))
        waiting[-1].start()
    for thread in waiting:
        thread.join()
    return answers


def _figures(address: str, model: str, answers: Sequence[tuple[float, Answer]]) -> Served:
    whole = [answer for _, answer in answers if answer.whole]
    seconds = max(due + answer.ended for due, answer in answers)
    first = [answer.times[0] for answer in whole if answer.times]
    between = [b - a for answer in whole for a, b in zip(answer.times, answer.times[1:], strict=False)]
    return Served(
        address,
        model,
        len(whole) / seconds,
        sum(answer.tokens for answer in whole) / seconds,
        *(_percentile(first, 50), _percentile(first, 95)),
        *(_percentile(between, 50), _percentile(between, 95)),
        len(answers) - len(whole),
    )


def _percentile(values: Sequence[float], percent: int) -> float | None:
    if len(values) < 2:
        return values[0] if values else None
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def load_table(served: Sequence[Served], load: Load) -> Table:
    """One line a server."""
    title = f"{load.requests} requests, {load.rate:g} a second, {load.pictures:.0%} with a picture"
    table = WholeTable(title, narrow=True)
    numbers = ("requests/s", "tokens/s", "first token, ms", "95%", "between tokens, ms", "95%", "failures")
    for name in ("model", *numbers):
        table.add_column(name, justify="right" if name in numbers else "left")
    for one in served:
        times = (one.first_token, one.first_token_95, one.between_tokens, one.between_tokens_95)
        table.add_row(
            one.model,
            f"{one.requests_per_second:.2f}",
            f"{one.tokens_per_second:.1f}",
            *("-" if seconds is None else f"{1e3 * seconds:.0f}" for seconds in times),
            str(one.failures),
        )
    return table
