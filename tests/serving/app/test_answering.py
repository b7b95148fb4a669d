"""Answers as they come: those of `quota run`, under any budget, for every family; cancelled at any moment."""

from __future__ import annotations

from pathlib import Path
from threading import Event

import pytest
import torch
from PIL import Image
from support.families import TINY
from support.families.own import OWN
from support.tiny_llava import make_samples

from quota.checkpoint.named import load_model
from quota.errors import QuotaError
from quota.evaluation.footprint import footprint
from quota.models import fingerprint
from quota.prompts import answer
from quota.pruning.pruner import Pruner
from quota.pruning.recipe import PruningRecipe
from quota.samples import Sample
from quota.serving.app.answering import answers
from quota.serving.app.budgets import Budgets
from quota.serving.app.pictures import drawn


def test_an_answer_is_that_of_quota_run_with_its_costs(quota_folder: Path) -> None:
    model, processor, _ = load_model(str(quota_folder))
    [sample] = make_samples(1, seed=5)
    expected, costs = answer(model, processor, sample, 256), footprint(model, processor, sample)
    recipe = Budgets(model).own
    *grown, last = answers(model, processor, sample, recipe, Event())
    assert last.finished and expected.startswith(last.text) and last.text
    assert len(grown) > 2 and all(last.text.startswith(one.text.strip()) for one in grown)
    assert (last.cache_bytes, last.tokens_per_layer) == (costs.kv_bytes, costs.visual_tokens_per_layer)
    assert [len(kept) for kept in last.kept.values()] == recipe.counts(16)
    assert last.first_token and last.seconds and last.tokens_per_second


def test_one_that_is_cancelled_ends_at_once(quota_folder: Path) -> None:
    model, processor, _ = load_model(str(quota_folder))
    budgets, cancelled, said = Budgets(model), Event(), []
    for one in answers(model, processor, make_samples(1)[0], budgets.own, cancelled):
        said.append(one)
        cancelled.set()
    assert len(said) <= 3 and not said[-1].finished


def test_a_question_without_end_is_refused(quota_folder: Path) -> None:
    model, processor, _ = load_model(str(quota_folder))
    picture = make_samples(1)[0].pictures()[0]
    with pytest.raises(QuotaError, match="the model knows 256"):
        list(answers(model, processor, Sample(picture, "what " * 20_000), Budgets(model).own, Event()))


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_every_family(name: str) -> None:
    try:
        processor = OWN[name]()
    except ImportError as error:
        pytest.skip(f"run where torchvision is: {str(error).strip().splitlines()[0]}")
    model = TINY[name].build()
    recipe = PruningRecipe(
        layers=(1, 3),
        keep_ratios=(0.6, 0.3),
        keep=0.3,
        reference_tokens=16,
        model_fingerprint=fingerprint(model),
    )
    picture = Image.effect_noise((60, 40), 90).convert("RGB")
    sample = Sample(picture, "w20 w21")
    with torch.random.fork_rng(), Pruner(model, recipe):
        budgets = Budgets(model)
        assert budgets.why_not and budgets.recipe(50) is budgets.own
        kept = {}
        for one in (budgets.own, budgets.everything):
            *_, last = answers(model, processor, sample, one, Event())
            kept[one.keep] = last.tokens_per_layer
            assert last.finished and not last.unplaced
            assert len(drawn(picture, last.boxes, last.kept)) == 1 + len(one.layers)
        assert len(set(kept[1.0])) == 1 and kept[0.3][-1] < kept[1.0][-1]
        model.quota_pruner.detach()
