"""A suite answered by several processes at once, on this machine or on a cluster, by Ray.

Each worker loads the model and answers one batch after the other; the batches are those that one process would ask,
so the answers are the same, given the same number of threads. A worker that dies is started again and its batch asked
again, a few times. With RAY_ADDRESS set the workers are on that cluster, all nodes of which see the model and the
pictures by the same paths.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from quota import ops
from quota.checkpoint.named import load_model
from quota.errors import QuotaError
from quota.evaluation.evaluate import BATCH_SIZE, Answered, Evaluation, answer_batch, check_answers, judge
from quota.ops import device
from quota.progress import Progress
from quota.samples import Sample, batches

TRIES = 3
"""How often a worker, and the batch that it had, is started again."""


class _Worker:
    """Runs in a process of its own."""

    def __init__(self, name: str, threads: int, backend: str | None) -> None:
        torch.set_num_threads(threads)
        self._backend = backend
        self._model, self._processor, _ = load_model(name)

    def answer(self, together: Sequence[Sample]) -> Answered:
        with ops.use(self._backend):
            return answer_batch(self._model, self._processor, together)


def evaluate_over(
    name: str,
    samples: Sequence[Sample],
    workers: int,
    batch_size: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """`evaluate` for the model `name` (as `load_model` takes it), its batches shared by so many `workers`.

    They share the threads of this process. Seconds are those of the worker that answered longest. Raises QuotaError
    as `evaluate` and `load_model` do, for another device than the CPU, without the extra `ray`, and for a batch whose
    worker dies every time.
    """
    if device.chosen().type != "cpu":
        raise QuotaError("workers share the threads of the processor; with another --device leave them out")
    check_answers(samples)
    together = batches(samples, batch_size or BATCH_SIZE)
    threads = max(1, torch.get_num_threads() // workers)
    with _ray(workers * threads) as ray, _in_one_line(ray):
        actor = ray.remote(num_cpus=threads, max_restarts=TRIES, max_task_retries=TRIES)(_Worker)
        idle = [actor.remote(name, threads, ops.forced()) for _ in range(min(workers, len(together)))]
        taken = dict.fromkeys(idle, 0.0)
        answered: list[Answered | None] = [None] * len(together)
        waiting = list(enumerate(together))[::-1]
        asked: dict[Any, tuple[int, Any]] = {}
        done = 0
        while waiting or asked:
            while waiting and idle:
                number, batch = waiting.pop()
                worker = idle.pop()
                asked[worker.answer.remote(batch)] = number, worker
            [finished], _ = ray.wait(list(asked))
            number, worker = asked.pop(finished)
            answered[number] = found = ray.get(finished)
            taken[worker] += found.seconds
            idle.append(worker)
            done += len(together[number])
            if progress is not None:
                progress(done, len(samples))
        return judge(samples, [batch for batch in answered if batch is not None], max(taken.values()), seed)


@contextmanager
def _ray(processors: int) -> Iterator[Any]:
    """Ray, on a cluster that is there or on this machine alone, until the block ends."""
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise QuotaError("several workers need Ray; pip install 'quota-vlm[ray]'") from None
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if "RAY_ADDRESS" in os.environ:
            ray.init(**quiet)
        else:
            ray.init(num_cpus=processors, include_dashboard=False, **quiet)
    except Exception as error:
        # Its own errors have many types, and lines.
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise QuotaError(f"Ray does not start ({first}); try again on a machine that is less busy") from error
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def _in_one_line(ray: Any) -> Iterator[None]:
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, QuotaError):
            raise QuotaError(str(error.cause)) from error
        raise
    except ray.exceptions.RayActorError as error:
        # What raised while a worker began is told in its own words, at the end of many lines.
        last = str(error).strip().splitlines()[-1]
        raise QuotaError(
            f"a worker has died {TRIES + 1} times ({last}); give it more memory, or fewer workers"
        ) from error
