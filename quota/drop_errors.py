"""What dropping visual tokens does to the answer, measured under the deployed operators.

    E_l(k) = exp(mean over samples of ln(KL(p || p_lk) + e)) - e                                    e = 1e-6 nats

p is the next-token distribution behind the prompt of the quantised model with every visual token, p_lk the same with
the best k tokens going on after layer l and no other cut. It needs no answers: calibration questions are enough. One
cut at a time, so a table of layers and counts is a pass over the samples for each entry, from its layer on
(quota/replay.py); quota/budget.py puts cuts together.

The mean is geometric because divergences are spread over many powers of ten: an arithmetic mean is that of the one or
two samples whose answer has flipped, and which these are changes with every cut and every choice of samples. What is
typical of a cut shows in all of them (docs/study/README.md has the figures).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from quota.allocation import keep_count
from quota.models import fingerprint
from quota.pruning import Pruner
from quota.recipe import PruningRecipe
from quota.replay import Replay
from quota.samples import Sample, build_inputs
from quota.scheme import QuantizationScheme

Progress = Callable[[int, int], None]

SCORER = "peaks"
RATIOS = (0.8, 0.65, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05)
"""Keep ratios that are tried; the final one of a recipe joins them."""
_SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
_BATCH = 8
_SMALLEST = 1e-6


def candidates(depth: int) -> list[int]:
    """Layers that may drop tokens: before the decoder, and every tenth of its `depth` layers up to the middle."""
    return sorted({round(share * depth) - 1 for share in _SHARES})


def layers_run(layer: int, depth: int, ratio: float) -> float:
    """What one entry of the table takes, in decoder layers with all tokens."""
    return 1 + ratio * (depth - 1 - max(layer, 0))


def measure_drops(
    model: PreTrainedModel,
    processor: Any,
    samples: Sequence[Sample],
    scheme: QuantizationScheme | None,
    tokens: int,
    depth: int,
    ratios: Sequence[float] = RATIOS,
    progress: Progress | None = None,
) -> dict[int, dict[int, float]]:
    """E_l(k) in nats for the candidate layers of a decoder of `depth` layers, k = `ratios` of `tokens`, V0.

    `model` is deployed under `scheme` and not pruned. Two hidden states a sample are held.
    """
    batches = [build_inputs(processor, samples[start : start + _BATCH]) for start in range(0, len(samples), _BATCH)]
    replay = Replay(model, batches)
    full = _next_words(replay)
    errors: dict[int, dict[int, float]] = {layer: {} for layer in candidates(depth)}
    # In thousandths: a sum of floats would miss its total.
    steps = {(layer, ratio): round(1000 * layers_run(layer, depth, ratio)) for layer in errors for ratio in ratios}
    done, total = 0, sum(steps.values())
    for layer, table in errors.items():
        replay.begin_at(layer)
        for ratio in ratios:
            recipe = PruningRecipe(
                layers=(layer,),
                keep_ratios=(ratio,),
                keep=ratio,
                reference_tokens=tokens,
                scheme=scheme,
                scorer=SCORER,
                model_fingerprint=fingerprint(model),
            )
            pruner = Pruner(model, recipe, scheme).attach()
            try:
                pruned = _next_words(replay)
            finally:
                pruner.detach()
            table[keep_count(ratio, tokens)] = divergence(full, pruned)
            done += steps[layer, ratio]
            if progress is not None:
                progress(done, total)
    return errors


def divergence(full: Tensor, pruned: Tensor) -> float:
    """Geometric mean of KL(full || pruned) of log-probabilities [samples, vocabulary], in nats."""
    each = (full.exp() * (full - pruned)).sum(dim=-1).clamp(min=0)
    # exp and ln less 1 and plus 1: no error stays 0.
    return _SMALLEST * float((each / _SMALLEST).log1p().mean().expm1())


def _next_words(replay: Replay) -> Tensor:
    """Log-probabilities [samples, vocabulary] of what follows each prompt; prompts are padded on the left."""
    return replay.logits().double().log_softmax(dim=-1)
