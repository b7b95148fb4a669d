"""Calibrating in the pruned graph: the sweep's tokens are those of the deployed, pruned model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.tiny_llava import LAYERS, VISUAL_TOKENS, logits, make_model, make_samples, processor

import quota
from quota.attention.hook import attach_cache
from quota.calibration.curves import Curves
from quota.calibration.rounds import Original, as_graph, calibrate_in
from quota.calibration.sweep import Calibration, Sweep
from quota.errors import QuotaError
from quota.models import family, fingerprint
from quota.prompts import build_inputs
from quota.pruning.pruner import Pruner
from quota.pruning.recipe import PruningRecipe
from quota.scheme import QuantizationScheme

SAMPLES = make_samples(4)


def recipe(*ratios: float, scheme: QuantizationScheme | None = None, **changes: Any) -> PruningRecipe:
    """Candidate layers 1, 3, ... with these keep ratios."""
    layers = tuple(range(1, 2 * len(ratios), 2))
    fields: dict[str, Any] = {"layers": layers, "keep_ratios": ratios, "keep": ratios[-1]} | changes
    scheme = scheme or QuantizationScheme()
    return PruningRecipe(
        **fields, reference_tokens=VISUAL_TOKENS, model_fingerprint=fingerprint(make_model()), scheme=scheme
    )


@pytest.mark.parametrize("transforms", ["hadamard", "learned"])
@pytest.mark.parametrize("before", [False, True], ids=["in the decoder", "before the decoder"])
def test_the_deployed_stream_is_that_of_the_pruned_model(before: bool, transforms: Any) -> None:
    scheme = QuantizationScheme(transforms=transforms)
    changes = {"layers": (-1, 2), "scorer": "peaks", "weights": {}} if before else {}
    model, chosen = make_model(), recipe(0.5, 0.25, scheme=scheme, **changes)
    inputs = [build_inputs(processor(), [sample]) for sample in SAMPLES]
    sweep = Sweep(model, inputs, scheme, recipe=chosen)
    sweep.run()
    attach_cache(model, scheme)
    Pruner(model, chosen, scheme).attach()
    left: list[torch.Tensor] = []
    family(model).decoder_layers[-1].register_forward_hook(lambda *call: left.append(call[-1]))
    for given, deployed, exact in zip(inputs, sweep.deployed, sweep.exact, strict=True):
        with torch.no_grad():
            model(**given)
        text = given["input_ids"].shape[1] - VISUAL_TOKENS
        assert exact.shape == deployed.shape == (1, text + VISUAL_TOKENS // 4, deployed.shape[2])
        assert torch.equal(left.pop(), deployed)


def test_keeping_everything_is_the_unpruned_graph() -> None:
    inputs = [build_inputs(processor(), [sample]) for sample in SAMPLES]
    scheme, streams = QuantizationScheme(), []
    for chosen in (None, recipe(1.0)):
        sweep = Sweep(make_model(), inputs, scheme, recipe=chosen)
        sweep.run()
        streams.append(sweep.deployed)
    assert all(torch.equal(one, two) for one, two in zip(*streams, strict=True))


def test_what_only_the_tower_knows_is_refused() -> None:
    inputs = [build_inputs(processor(), [sample]) for sample in SAMPLES[:1]]
    chosen = recipe(0.5, scorer="visionzip", weights={})
    with pytest.raises(QuotaError, match="'visionzip' reads the tower's attention"):
        Sweep(make_model(), inputs, QuantizationScheme(), recipe=chosen).run()


def rounds(graph: Any, answers: list[PruningRecipe], limit: int = 4) -> tuple[Any, list[PruningRecipe | None]]:
    """`calibrate_in` where the sweeps lead to these recipes, one after the other; and the recipes they ran under."""
    under: list[PruningRecipe | None] = []

    def sweep(chosen: PruningRecipe | None) -> Calibration:
        under.append(chosen)
        return Calibration(Curves(), VISUAL_TOKENS, 0)

    made: Callable[[Calibration], PruningRecipe] = lambda _: answers[len(under) - 1]  # noqa: E731
    return calibrate_in(graph, make_model(), sweep, made, limit), under


def test_unpruned_is_one_sweep() -> None:
    found, under = rounds("unpruned", [recipe(0.5)])
    assert (found.recipe, found.sweeps, found.settled, under) == (recipe(0.5), 1, True, [None])


def test_pruned_is_a_second_sweep_under_the_first_recipe() -> None:
    found, under = rounds("pruned", [recipe(0.5), recipe(0.3)])
    assert (found.recipe, found.sweeps, under) == (recipe(0.5), 2, [None, recipe(0.5)])


def test_joint_ends_when_a_recipe_comes_out_as_it_went_in() -> None:
    found, under = rounds("joint", [recipe(0.5), recipe(0.3), recipe(0.3)])
    assert (found.recipe, found.sweeps, found.settled) == (recipe(0.3), 3, True)
    assert under == [None, recipe(0.5), recipe(0.3)]


def test_joint_that_does_not_settle_keeps_the_recipe_its_weights_are_made_for() -> None:
    found, under = rounds("joint", [recipe(0.5), recipe(0.3), recipe(0.5)], limit=3)
    assert (found.recipe, found.sweeps, found.settled) == (recipe(0.3), 3, False)
    assert under[-1] == found.recipe


def test_one_round_of_joint_is_refused() -> None:
    with pytest.raises(QuotaError, match="at least 2"):
        rounds("joint", [recipe(0.5)], limit=1)


def test_an_unknown_graph_is_refused() -> None:
    with pytest.raises(QuotaError, match="unpruned, pruned, joint"):
        as_graph("round")


@pytest.mark.parametrize("transforms", ["hadamard", "learned"])
def test_the_original_is_the_model_as_it_was(transforms: Any) -> None:
    model = make_model()
    before, original = logits(model), Original(model)
    Sweep(model, [build_inputs(processor(), [SAMPLES[0]])], QuantizationScheme(transforms=transforms)).run()
    assert not torch.equal(logits(model), before)
    original.restore(model)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("graph", ["pruned", "joint"])
def test_compress_in_another_graph(graph: Any) -> None:
    model: Any = make_model()
    plain = make_model()
    result = quota.compress(model, processor(), SAMPLES, graph=graph, layers=[1, 3], keep=0.25, method="paper")
    first = quota.compress(plain, processor(), SAMPLES, layers=[1, 3], keep=0.25, method="paper")
    assert result.sweeps >= 2 and first.sweeps == 1
    assert model.quota_pruner.recipe == result.recipe
    # The layers before the first cut see what they saw, those behind it do not.
    layers: list[list[Any]] = [list(family(each).decoder_layers) for each in (model, plain)]
    same = [
        torch.equal(one.mlp.up_proj.weight_packed, two.mlp.up_proj.weight_packed)
        for one, two in zip(*layers, strict=True)
    ]
    assert same == [True, True] + [False] * (LAYERS - 2)


@pytest.mark.parametrize("graph", ["pruned", "joint"])
def test_measured_budgets_go_with_every_graph(graph: Any) -> None:
    model: Any = make_model()
    steps: list[tuple[int, int]] = []
    result = quota.compress(
        model, processor(), SAMPLES, graph=graph, keep=0.25, progress=lambda done, total: steps.append((done, total))
    )
    assert result.sweeps >= 2
    assert result.recipe.method == "quota"
    assert model.quota_pruner.recipe == result.recipe
    assert all(done <= total for done, total in steps)
