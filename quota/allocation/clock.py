"""How long a prefill takes by its schedule, measured on the machine: what a budget in milliseconds is kept by.

    t(s) = rest + layer * sum_l f(n_l) + cut * (number of cuts)             of a schedule with a cut

f(n) is the arithmetic of a decoder layer that n visual tokens enter, relative to all of them; `rest` is what no
schedule changes (vision tower, text, everything of a layer but its visual tokens). The three are least squares over a
few schedules: one cut before the decoder to several sizes, and one after every candidate layer. They are timed in
turns, so that a machine that slows down slows all of them. A prefill that drops nothing is timed beside them: it does
without the masks and tables of a pruned one, and takes less than the sum would say.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from quota import ops
from quota.allocation.drops import candidates, schedule_recipe
from quota.errors import QuotaError
from quota.models import family
from quota.ops import device, machine
from quota.pruning.pruner import Pruner
from quota.pruning.schedule import Schedule, Work, keep_count, layer_work
from quota.scheme import QuantizationScheme

TURNS = 25
_SIZES = (0.6, 0.4, 0.25, 0.1)


@dataclass(frozen=True)
class Clock:
    """What a prefill is made of, in milliseconds."""

    rest: float
    layer: float
    """All visual tokens in one decoder layer."""
    cut: float
    depth: int
    """Decoder layers."""
    full: float
    """A prefill that drops nothing."""
    machine: str = ""
    """Where it was measured, as `machines` names it."""

    @property
    def charge(self) -> float:
        """A cut, in layers with all visual tokens."""
        return self.cut / self.layer

    def compute(self, milliseconds: float) -> float:
        """What a prefill of so long may spend on visual tokens and cuts, relative to all tokens in all layers.

        More than 1 where there is time for all tokens and for cuts besides. QuotaError if there is nothing to spend.
        """
        if milliseconds <= self.rest:
            raise QuotaError(
                f"a prefill in {milliseconds:.1f} ms is out of reach: here it takes {self.rest:.1f} ms without any "
                f"visual token in the decoder, and {self.full:.1f} ms with all of them"
            )
        return (milliseconds - self.rest) / (self.layer * self.depth)

    def milliseconds(self, schedule: Schedule, tokens: int, work: Work) -> float:
        """A prefill under `schedule`, with V0 = `tokens`; `work` is of a layer, relative to all of them."""
        if not schedule.layers:
            return self.full
        return self.rest + self.layer * schedule.cost(tokens, self.depth, work, self.charge)


def machines() -> list[str]:
    """What a prefill may run on here: the processor and each CUDA device, with what else its time depends on."""
    found = []
    for one in device.present():
        # A backend that is forced may run on some of them only.
        with suppress(QuotaError):
            found.append(machine_of(one))
    return found


def machine_of(place: torch.device) -> str:
    """The name of what runs there. QuotaError if no backend does."""
    backend = ops.backend(device=place).name
    if place.type == "cuda":
        return f"{machine.name(place)}, {backend}"
    return f"{machine.processor()}, {torch.get_num_threads()} threads, {backend}"


def prefill_clock(
    model: PreTrainedModel,
    inputs: Any,
    tokens: int,
    scheme: QuantizationScheme | None,
    scorer: str,
    turns: int = TURNS,
) -> Clock:
    """Time a model, deployed under `scheme` and not pruned, on the `inputs` of one prompt; V0 is `tokens`.

    Cuts are by `scorer`, as scores take different times.

    Raises QuotaError if what visual tokens cost cannot be told, on a machine that does other things meanwhile.
    """
    depth, config = len(family(model).decoder_layers), model.config.get_text_config()
    sizes = [keep_count(ratio, tokens) for ratio in _SIZES]
    falling = [(layer, max(1, sizes[0] - place)) for place, layer in enumerate(candidates(depth))]
    schedules = [Schedule.of_counts(cuts, tokens) for cuts in (*([(-1, size)] for size in sizes), falling)]
    recipes = [schedule_recipe(model, schedule, tokens, scheme, scorer) for schedule in schedules]
    milliseconds = prefill_milliseconds(model, inputs, [[], *([Pruner(model, one, scheme)] for one in recipes)], turns)
    work = layer_work(tokens, config)
    pruned = [(one.cost(tokens, depth, work), len(one.layers)) for one in schedules]
    return Clock(*fit(pruned, milliseconds[1:]), depth, milliseconds[0], machine_of(model.device))


def fit(schedules: Sequence[tuple[float, int]], milliseconds: Sequence[float]) -> tuple[float, float, float]:
    """rest, layer and cut: least squares over schedules, each given as (layers with all tokens it is worth, cuts)."""
    rows = torch.tensor([[1.0, work, cuts] for work, cuts in schedules], dtype=torch.float64)
    solution = torch.linalg.lstsq(rows, torch.tensor(milliseconds, dtype=torch.float64)[:, None]).solution
    rest, layer, cut = solution.flatten().tolist()
    if min(rest, layer) <= 0:
        raise QuotaError("prefills took no less time with fewer visual tokens; time on a machine that is idle")
    return rest, layer, max(0.0, cut)


def prefill_milliseconds(
    model: PreTrainedModel, inputs: Any, pruners: Sequence[Sequence[Pruner]], turns: int = TURNS
) -> list[float]:
    """A prefill of `inputs` with each of these attached (none: the model as it is), in turns: medians of `turns`."""
    taken: list[list[float]] = [[] for _ in pruners]
    for _ in range(turns):
        for together, own in zip(pruners, taken, strict=True):
            with attached(together):
                # The first of two warms up: what ran before had other sizes.
                _prefill(model, inputs)
                own.append(_prefill(model, inputs))
    return [statistics.median(own) for own in taken]


def _prefill(model: Any, inputs: Any) -> float:
    began = time.perf_counter()
    with torch.inference_mode():
        # Reading a number waits for a GPU to finish.
        float(model(**inputs, use_cache=True, logits_to_keep=1).logits.flatten()[0])
    return 1000 * (time.perf_counter() - began)


@contextmanager
def attached(pruners: Sequence[Pruner]) -> Iterator[None]:
    """Attach them for as long as the block runs."""
    with ExitStack() as together:
        for pruner in pruners:
            together.enter_context(pruner)
        yield
