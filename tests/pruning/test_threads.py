"""Several threads on one model: every pass has its own state, so each answers what one thread alone is answered."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from support.pruned import PROMPTS, generate, recipe_for
from support.tiny import tiny_batch, tiny_llava, tiny_prompt
from transformers import LlavaForConditionalGeneration

from quota.models import family
from quota.pruning.pruner import Pruner
from quota.quantization.linear import W4A4Linear
from quota.scheme import QuantizationScheme

THREADS, CALLS = 4, 200
BATCHES = [
    *map(tiny_batch, PROMPTS.values()),
    tiny_batch([tiny_prompt(1, 2, seed=8)]),
    tiny_batch([tiny_prompt(count, 3 + 4 * count, seed=9 + count) for count in range(4)]),
    tiny_batch([tiny_prompt(2, 30, seed=20), tiny_prompt(2, 1, seed=21), tiny_prompt(1, 1, seed=22)]),
]


def compressed(implementation: str, **changes: Any) -> LlavaForConditionalGeneration:
    scheme = QuantizationScheme(weight_rounding="rtn")
    model = tiny_llava(implementation)
    for name, linear in family(model).linears(scheme.modules):
        model.set_submodule(name, W4A4Linear.from_linear(linear, scheme))
    Pruner(model, recipe_for(model, scheme=scheme, **changes), scheme).attach()
    return model


def full_precision(implementation: str, **changes: Any) -> LlavaForConditionalGeneration:
    model = tiny_llava(implementation)
    Pruner(model, recipe_for(model, **changes)).attach()
    return model


def at_once(call: Callable[[int], Any], calls: int) -> list[Any]:
    """What `call` gives for 0, 1, ..., asked by all threads together in an order of chance."""
    order = random.Random(0).sample(range(calls), calls)
    with ThreadPoolExecutor(THREADS) as pool:
        given = dict(zip(order, pool.map(call, order), strict=True))
    return [given[number] for number in range(calls)]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("make", "calls"), [(compressed, CALLS), (full_precision, CALLS // 2)], ids=["compressed", "full precision"]
)
def test_answers_are_those_of_one_thread(
    make: Callable[[str], LlavaForConditionalGeneration], calls: int, implementation: str
) -> None:
    model = make(implementation)
    expected = [generate(model, batch) for batch in BATCHES]
    for number, output in enumerate(at_once(lambda number: generate(model, BATCHES[number % len(BATCHES)]), calls)):
        alone = expected[number % len(BATCHES)]
        assert torch.equal(output.sequences, alone.sequences)
        assert torch.equal(torch.stack(output.logits), torch.stack(alone.logits))
    assert model.config.get_text_config()._attn_implementation == implementation
