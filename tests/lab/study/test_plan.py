"""From a variant's pruning and one calibration to the recipe that runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.tiny_llava import LAYERS, VISUAL_TOKENS, make_model

from quota.allocation.clock import Clock
from quota.calibration.curves import Curves
from quota.errors import QuotaError
from quota.pruning.recipe import PruningRecipe
from quota.pruning.schedule import Schedule
from quota.scheme import QuantizationScheme
from quota_lab.study.methods import methods
from quota_lab.study.plan import Measured, recipe, reference_cost, resolve
from quota_lab.study.variants import Pruning

SCHEME = QuantizationScheme()


@pytest.fixture(scope="module")
def measured() -> Measured:
    flat = [0.5] * LAYERS
    curves = Curves([0.1 * (layer + 1) for layer in range(LAYERS)], flat, [0.0] * LAYERS, flat)
    return Measured(curves, VISUAL_TOKENS, make_model().config.get_text_config(), "fingerprint")


def test_the_default_is_the_published_method(measured: Measured) -> None:
    made = recipe(Pruning(), measured, SCHEME)
    assert made.layers == measured.layers() == (2, 3)
    assert made.scorer == "composite" and made.weights["risk"] == 0.20
    assert made.keep_ratios[-1] == 0.30


def test_full_precision_has_no_risk_and_the_rest_fills_its_place(measured: Measured) -> None:
    made = recipe(Pruning(), measured, None)
    assert made.weights == pytest.approx({"inter": 0.5625, "mag": 0.3125, "intra": 0.125})


@pytest.mark.parametrize("name", methods(0.7))
def test_no_method_costs_more_than_its_budget_and_one_token_more_would(name: str, measured: Measured) -> None:
    target = 0.7
    pruning = methods(target)[name]
    found = resolve(pruning, measured)
    if name == "VTW":
        later = Schedule((found.layers[0] + 1,), found.ratios)
        assert found.ratios == (1 / VISUAL_TOKENS,)
        assert measured.cost(found) <= target < measured.cost(later)
        return
    assert measured.cost(found) <= target
    more = Pruning(**pruning.model_dump() | {"keep": found.ratios[-1] + 1 / VISUAL_TOKENS, "compute": None})
    assert measured.cost(resolve(more, measured)) > target


def test_as_costly_as_the_published_schedule(measured: Measured) -> None:
    found = resolve(Pruning(layers=(0, 1), schedule="linear", keep=None, as_costly_as=0.3), measured)
    assert measured.cost(found) <= reference_cost(0.3, measured)


def test_the_measured_schedule_ends_where_it_should_and_costs_no_more(measured: Measured) -> None:
    errors = {layer: {11: 0.1 / (layer + 2), 5: 1.0 / (layer + 2)} for layer in (-1, 1, 3)}
    given = replace(measured, errors=errors, whole=lambda one: len(one.layers))
    found = resolve(Pruning(scorer="information", schedule="measured"), given)
    assert found.ratios[-1] == 0.30
    assert measured.cost(found) <= reference_cost(0.3, measured)
    alone = resolve(Pruning(scorer="information", schedule="measured", keep=None, compute=0.4), given)
    assert alone.ratios[-1] == 5 / VISUAL_TOKENS
    with pytest.raises(QuotaError, match="needs the errors"):
        resolve(Pruning(schedule="measured"), measured)


class TestPrefillTime:
    """Budgets of time, by a clock on which 16 tokens in a layer take 1 ms, and a prefill without any 10."""

    @staticmethod
    def timed(measured: Measured, cut: float) -> Measured:
        """With a clock, on a machine where each cut of any method takes `cut` ms."""
        clock = Clock(rest=10.0, layer=1.0, cut=0.25, depth=LAYERS, full=10.0 + LAYERS)

        def times(recipes: list[PruningRecipe | None]) -> list[float]:
            return [
                10 + LAYERS if made is None else 10 + LAYERS * measured.cost(made.schedule) + cut * len(made.layers)
                for made in recipes
            ]

        return replace(measured, clock=lambda: clock, times=times)

    @pytest.mark.parametrize("name", methods(0.7))
    @pytest.mark.parametrize("cut", [0.1, 0.5])
    def test_a_method_gets_what_its_own_cuts_leave(self, name: str, cut: float, measured: Measured) -> None:
        given = self.timed(measured, cut)
        found = resolve(methods(prefill=0.9)[name], given)
        spent = LAYERS * measured.cost(found) + cut * len(found.layers)
        assert 10 + spent <= 0.9 * (10 + LAYERS) + 1e-9
        compute = (0.9 * (10 + LAYERS) - 10 - cut * len(found.layers)) / LAYERS
        assert found == resolve(methods(compute)[name], measured)

    def test_ours_is_charged_for_its_cuts(self, measured: Measured) -> None:
        errors = {layer: {11: 0.1 / (layer + 2), 5: 1.0 / (layer + 2)} for layer in (-1, 1, 3)}
        given = replace(self.timed(measured, 0.25), errors=errors, whole=lambda one: len(one.layers))
        found = resolve(Pruning(scorer="information", schedule="measured", keep=None, prefill=0.9), given)
        assert LAYERS * measured.cost(found) + 0.25 * len(found.layers) <= 0.9 * (10 + LAYERS) - 10

    def test_it_takes_a_clock(self, measured: Measured) -> None:
        with pytest.raises(QuotaError, match="needs a clock"):
            resolve(Pruning(keep=None, prefill=0.9), measured)


def test_shares_of_the_depth_are_layers(measured: Measured) -> None:
    # Of 6 layers: after 1.5, 3 and 4.5 of them, rounded to even.
    assert resolve(Pruning(depths=(0.25, 0.5, 0.75), schedule="uniform"), measured).layers == (1, 2, 3)


def test_a_variant_without_a_budget(measured: Measured) -> None:
    with pytest.raises(QuotaError, match="neither"):
        resolve(Pruning(keep=None), measured)
    with pytest.raises(QuotaError, match="state a cost"):
        resolve(Pruning(schedule="withdraw"), measured)
