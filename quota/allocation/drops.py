"""What dropping visual tokens does to the answer, measured under the deployed operators.

    E(s) = exp(mean over samples of ln(D_s + e)) - e                                                e = 0.1 nats
    D_s  = sum over the words t of the answer of KL(p_t || p_s,t)

p_t is the distribution of word t behind the prompt and the words before it, of the quantised model with every visual
token; p_s,t the same under the schedule s. The answer is what that model says by itself, so calibration needs none.
The table E_l(k) is of single cuts: the best k tokens go on after layer l, and nothing else is dropped. It is a pass
over the samples for each entry, from its layer on (quota/allocation/replay.py); quota/allocation/solver.py puts cuts
together.

The mean is geometric because divergences are spread over many powers of ten: an arithmetic mean is that of the one or
two samples whose answer has flipped, and which these are changes with every cut and every choice of samples. What is
typical of a cut shows in all of them (docs/study/README.md has the figures). Less than e changes no answer: with a
smaller one, five kinds of questions that gain what nobody sees outvote a sixth that loses its answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from quota.allocation.replay import Replay
from quota.allocation.table import SMALLEST
from quota.models import fingerprint
from quota.ops.device import at_once
from quota.progress import Progress
from quota.prompts import build_inputs, generate
from quota.pruning.pruner import Pruner
from quota.pruning.recipe import PruningRecipe
from quota.pruning.schedule import Schedule, keep_count
from quota.ranks import ALONE, Ranks
from quota.samples import Sample, batches
from quota.scheme import QuantizationScheme

Table = dict[int, dict[int, float]]

RATIOS = (0.8, 0.65, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05)
"""Keep ratios that are tried; the final one of a recipe joins them."""
_SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
_BATCH = 8
WORDS = 8
"""Of an answer, so many words count."""


def candidates(depth: int) -> list[int]:
    """Layers that may drop tokens: before the decoder, and every tenth of its `depth` layers up to the middle."""
    return sorted({round(share * depth) - 1 for share in _SHARES})


def layers_run(layer: int, depth: int, ratio: float) -> float:
    """What one entry of the table takes, in decoder layers with all tokens."""
    return 1 + ratio * (depth - 1 - max(layer, 0))


class Drops:
    """What schedules do to the answers of one model."""

    def __init__(
        self,
        model: PreTrainedModel,
        processor: Any,
        samples: Sequence[Sample],
        scheme: QuantizationScheme | None,
        tokens: int,
        words: int = WORDS,
        ranks: Ranks = ALONE,
    ) -> None:
        """`model` is deployed under `scheme`, KV cache included, and not pruned; V0 is `tokens`.

        Of each answer the first `words` count. Two hidden states of a sample are held, and the logits of those words.
        `samples` are those of all `ranks`, which take turns at batches: what stands in one never depends on the others.
        """
        self._model, self._scheme, self._tokens, self._ranks = model, scheme, tokens, ranks
        together = batches(samples, at_once(_BATCH, model.device))
        ends = accumulate(map(len, together))
        places = [slice(end - len(batch), end) for end, batch in zip(ends, together, strict=True)]
        self._known: dict[tuple[Schedule, str], float] = {}
        self._count, self._places = len(samples), places[ranks.rank :: ranks.size]
        asked = [build_inputs(processor, batch) for batch in together[ranks.rank :: ranks.size]]
        answers = [generate(model, processor, batch, words) for batch in asked]
        self._said = [spoken(answer, _ends(model)) for answer in answers]
        self._replay = Replay(model, asked, answers)
        self._full = [logits[said] for logits, said in zip(self._replay.logits(), self._said, strict=True)]

    def error(self, schedule: Schedule, scorer: str) -> float:
        """E(s) in nats, where `scorer` chooses the tokens. What was measured once is known."""
        if not schedule.layers:
            return 0.0
        if (schedule, scorer) not in self._known:
            self._known[schedule, scorer] = self._measure(schedule, scorer)
        return self._known[schedule, scorer]

    def _measure(self, schedule: Schedule, scorer: str) -> float:
        self._replay.begin_at(schedule.layers[0])
        recipe = schedule_recipe(self._model, schedule, self._tokens, self._scheme, scorer)
        each = torch.zeros(self._count, dtype=torch.float64)
        with Pruner(self._model, recipe, self._scheme):
            found = zip(self._places, self._full, self._replay.logits(), self._said, strict=True)
            for place, full, logits, said in found:
                each[place] = divergence(full, logits[said], said)
        return typical(self._ranks.total(each))

    def table(
        self, depth: int, scorer: str, ratios: Sequence[float] = RATIOS, progress: Progress | None = None
    ) -> Table:
        """E_l(k) under `scorer` for the candidate layers of a decoder of `depth` layers, k = `ratios` of V0."""
        errors: Table = {layer: {} for layer in candidates(depth)}
        # In thousandths: a sum of floats would miss its total.
        steps = {(layer, ratio): round(1000 * layers_run(layer, depth, ratio)) for layer in errors for ratio in ratios}
        done, total = 0, sum(steps.values())
        for (layer, ratio), step in steps.items():
            count = keep_count(ratio, self._tokens)
            errors[layer][count] = self.error(Schedule.of_counts([(layer, count)], self._tokens), scorer)
            done += step
            if progress is not None:
                progress(done, total)
        return errors


def schedule_recipe(
    model: PreTrainedModel, schedule: Schedule, tokens: int, scheme: QuantizationScheme | None, scorer: str
) -> PruningRecipe:
    """The recipe that runs a schedule of at least one cut, over V0 = `tokens`, on a model deployed under `scheme`."""
    return PruningRecipe(
        layers=schedule.layers,
        keep_ratios=schedule.ratios,
        keep=schedule.ratios[-1],
        reference_tokens=tokens,
        scheme=scheme,
        scorer=scorer,
        model_fingerprint=fingerprint(model),
    )


def divergence(full: Tensor, pruned: Tensor, said: Tensor) -> Tensor:
    """D of each answer in nats, [B]: sums of KL(full || pruned).

    `said` [B, T] bool are the words of the answers, `full` and `pruned` the logits [words said, vocabulary] they are
    chosen from, answer by answer.
    """
    p, q = full.double().log_softmax(dim=-1), pruned.double().log_softmax(dim=-1)
    each = torch.zeros(said.shape, dtype=p.dtype, device=p.device)
    each[said] = (p.exp() * (p - q)).sum(dim=-1).clamp(min=0)
    return each.sum(dim=1)


def typical(divergences: Tensor) -> float:
    """E of the divergences [samples]: their geometric mean, with e added to each and taken away again."""
    # exp and ln less 1 and plus 1: no error stays 0.
    return SMALLEST * float((divergences / SMALLEST).log1p().mean().expm1())


def spoken(answers: Tensor, ends: Sequence[int]) -> Tensor:
    """Which of the generated tokens [B, T] are words of the answer, its end mark included and what follows not."""
    ended = torch.isin(answers, torch.tensor(ends, device=answers.device)).int()
    return ended.cumsum(dim=1) - ended == 0


def _ends(model: PreTrainedModel) -> list[int]:
    end = cast("GenerationConfig", model.generation_config).eos_token_id
    return [] if end is None else [end] if isinstance(end, int) else list(end)
