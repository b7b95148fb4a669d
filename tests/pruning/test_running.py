"""One Pruner runs several recipes, each thread its own, and each as a Pruner of that recipe alone would."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from support.pruned import PROMPTS, generate, recipe_for
from support.tiny import tiny_batch, tiny_llava

from quota.errors import QuotaError
from quota.pruning.pruner import Pruner, record
from quota.pruning.recipe import PruningRecipe
from quota.scheme import QuantizationScheme

SCHEDULES = [
    {"layers": (1, 2, 3), "keep_ratios": (0.8, 0.5, 0.3), "keep": 0.3},
    {"layers": (0,), "keep_ratios": (0.5,), "keep": 0.5},
    {"layers": (-1, 4), "keep_ratios": (0.7, 0.2), "keep": 0.2},
    {"layers": (2,), "keep_ratios": (1.0,), "keep": 1.0},
]
BATCH = tiny_batch(PROMPTS["left padding"])


def recipes(model) -> list[PruningRecipe]:
    return [recipe_for(model, scorer="information", **schedule) for schedule in SCHEDULES]


def asked(model) -> list[torch.Tensor]:
    with record(model) as trace:
        output = generate(model, BATCH)
    return [output.sequences, *output.logits, *trace.kept.values()]


def alike(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


@pytest.fixture(scope="module")
def alone() -> list[list[torch.Tensor]]:
    """What a Pruner of each recipe alone does."""
    model, made = tiny_llava(), []
    for recipe in recipes(model):
        with Pruner(model, recipe):
            made.append(asked(model))
    return made


def test_every_recipe_as_if_it_were_the_only_one(alone: list[list[torch.Tensor]]) -> None:
    model = tiny_llava()
    own, *others = recipes(model)
    with Pruner(model, own, layers=range(-1, 5)) as pruner:
        for recipe, wanted in zip(others, alone[1:], strict=True):
            with pruner.running(recipe):
                assert alike(asked(model), wanted)
            assert alike(asked(model), alone[0])


@pytest.mark.slow
def test_every_thread_has_its_own(alone: list[list[torch.Tensor]]) -> None:
    model = tiny_llava()
    made = recipes(model)
    with Pruner(model, made[0], layers=range(-1, 5)) as pruner, ThreadPoolExecutor(4) as pool:

        def ask(number: int) -> bool:
            with pruner.running(made[number % 4]):
                return alike(asked(model), alone[number % 4])

        assert all(pool.map(ask, range(40)))


def test_what_cannot_run() -> None:
    model = tiny_llava()
    pruner = Pruner(model, recipe_for(model), layers=(0,))
    for changes, message in (
        ({"layers": (0, 2, 4)}, r"after layers \[4\]"),
        ({"scorer": "information"}, "'composite', the recipe by 'information'"),
        ({"scheme": QuantizationScheme()}, "another scheme"),
        ({"model_fingerprint": "0" * 64}, "another model"),
    ):
        with pytest.raises(QuotaError, match=message), pruner.running(recipe_for(model, **changes)):
            pass
