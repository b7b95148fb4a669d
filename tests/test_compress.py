from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.tiny_llava import LAYERS, VISUAL_TOKENS, answers, logits, make_model, make_samples, processor
from torch import nn

import quota
from quota import QuantizationScheme, QuotaError
from quota.allocation.clock import Clock
from quota.allocation.paper import candidate_layers
from quota.compress import CompressionResult, prune_only, quantize_only
from quota.models import fingerprint
from quota.pruning.schedule import prefill_flops_ratio
from quota.samples import fingerprint as samples_fingerprint

SAMPLES = make_samples(5)


def compressed(**options: Any) -> tuple[Any, CompressionResult]:
    model = make_model()
    return model, quota.compress(model, processor(), SAMPLES, **({"method": "paper"} | options))


def test_recipe_comes_from_the_curves() -> None:
    model, result = compressed(keep=0.4, seed=7)
    curves, recipe = result.curves, result.recipe
    layers = candidate_layers(curves.concentration, curves.concentration_iqr, curves.redundancy, LAYERS)
    sensitivities = [result.sensitivities[layer] for layer in layers]
    assert recipe.layers == tuple(layers)
    assert recipe.sensitivities == tuple(sensitivities)
    assert recipe.keep_ratios == tuple(quota.keep_ratios(sensitivities, keep=0.4))
    assert (recipe.keep, recipe.seed, recipe.samples) == (0.4, 7, len(SAMPLES))
    assert recipe.reference_tokens == VISUAL_TOKENS
    assert recipe.scheme == result.scheme == QuantizationScheme()
    assert recipe.model_fingerprint == fingerprint(make_model()) == fingerprint(model)
    assert recipe.calibration_fingerprint == samples_fingerprint(SAMPLES)
    assert set(recipe.versions) == {"quota", "torch", "transformers"}


def test_the_order_of_the_samples_changes_nothing() -> None:
    first, found = compressed(method="quota")
    second = make_model()
    shuffled = quota.compress(second, processor(), [SAMPLES[place] for place in (3, 0, 4, 2, 1)])
    assert shuffled.recipe == found.recipe
    assert shuffled.curves == found.curves
    state = second.state_dict()
    assert not [name for name, tensor in first.state_dict().items() if not torch.equal(tensor, state[name])]


def test_the_default_spends_no_more_than_the_published_schedule() -> None:
    steps: list[tuple[int, int]] = []
    model, result = compressed(method="quota", progress=lambda done, total: steps.append((done, total)))
    _, paper = compressed()
    depth, config = LAYERS, model.config.get_text_config()
    spent, published = (
        prefill_flops_ratio(one.recipe.tokens_per_layer(VISUAL_TOKENS, depth), VISUAL_TOKENS, config)
        for one in (result, paper)
    )
    recipe = result.recipe
    assert spent <= published + 1e-9
    assert (recipe.method, recipe.scorer, recipe.weights) == ("quota", "information", {})
    assert recipe.keep == recipe.keep_ratios[-1] == 0.30
    assert paper.recipe.method == "paper"
    done, totals = zip(*steps, strict=True)
    assert list(done) == sorted(set(done))
    assert set(totals) == {done[-1]}
    _, less = compressed(method="quota", compute=0.5)
    assert prefill_flops_ratio(less.recipe.tokens_per_layer(VISUAL_TOKENS, depth), VISUAL_TOKENS, config) < spent


def test_milliseconds_are_spent_on_tokens_and_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    # A tiny model's prefill does not tell what its visual tokens cost, so the clock is given.
    asked: list[int] = []
    scored: list[str] = []

    def clock(model: Any, inputs: Any, tokens: int, scheme: Any, scorer: str) -> Clock:
        scored.append(scorer)
        asked.append(int((inputs["input_ids"] == model.config.image_token_id).sum()))
        return Clock(rest=10.0, layer=1.0, cut=0.5, depth=LAYERS, full=10.0 + LAYERS)

    monkeypatch.setattr("quota.allocation.search.prefill_clock", clock)
    _, result = compressed(method="quota", milliseconds=14.0)
    recipe, config = result.recipe, make_model().config.get_text_config()
    entering = recipe.tokens_per_layer(VISUAL_TOKENS, LAYERS)
    spent = LAYERS * prefill_flops_ratio(entering, VISUAL_TOKENS, config)
    assert asked == [VISUAL_TOKENS] and scored == [recipe.scorer]
    assert spent + 0.5 * len(recipe.layers) <= 4.0
    with pytest.raises(QuotaError, match="out of reach"):
        compressed(method="quota", milliseconds=9.0)


def test_compressed_model_drops_tokens_in_generate() -> None:
    model, result = compressed(layers=[1, 3], keep=0.25)
    with quota.record(model) as trace:
        answers(model)
    recipe = result.recipe
    assert recipe.layers == (1, 3)
    assert [trace.kept[layer].shape[1] for layer in recipe.layers] == recipe.counts(VISUAL_TOKENS)


def test_keeping_everything_is_quantizing_only() -> None:
    model, _ = compressed(keep=1.0)
    plain = make_model()
    quantize_only(plain, processor(), SAMPLES)
    assert torch.equal(answers(model), answers(plain))
    assert torch.equal(logits(model), logits(plain))


def test_without_its_pruner_a_compressed_model_is_the_quantized_one() -> None:
    model, result = compressed()
    model.quota_pruner.detach()
    plain = make_model()
    calibration = quantize_only(plain, processor(), SAMPLES)
    assert (calibration.curves, calibration.quantized) == (result.curves, result.quantized)
    assert torch.equal(logits(model), logits(plain))


def test_pruning_only_leaves_the_weights_and_the_risk_out() -> None:
    _, result = compressed()
    recipe = result.recipe
    model = make_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pruned = prune_only(model, recipe)
    assert (pruned.layers, pruned.keep_ratios) == (recipe.layers, recipe.keep_ratios)
    assert pruned.scheme is None
    assert pruned.weights == pytest.approx({"inter": 0.5625, "mag": 0.3125, "intra": 0.125})
    with quota.record(model) as trace:
        answers(model)
    assert trace.kept[recipe.layers[-1]].shape[1] == quota.keep_count(0.3, VISUAL_TOKENS)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"keep": 0.0}, "keep must be", id="keep 0"),
        pytest.param({"keep": 1.5}, "keep must be", id="keep above 1"),
        pytest.param({"temperature": 0.0}, "temperature", id="temperature 0"),
        pytest.param({"method": "paper", "layers": []}, "ascending", id="no layers"),
        pytest.param({"method": "paper", "layers": [3, 2]}, "ascending", id="layers not ascending"),
        pytest.param({"method": "paper", "layers": [2, LAYERS]}, "ascending", id="layer beyond the last"),
        pytest.param({"layers": [2, 3]}, 'method="paper" only', id="layers of the other method"),
        pytest.param({"method": "luck"}, "method.*'paper' or 'quota'", id="unknown method"),
        pytest.param({"compute": 1.5}, "compute must be", id="compute above 1"),
        pytest.param({"compute": 0.5, "method": "paper"}, "compute must be left out", id="compute of the other method"),
        pytest.param({"milliseconds": 0.0}, "milliseconds must be", id="no milliseconds"),
        pytest.param({"milliseconds": 9.0, "compute": 0.5}, "2 budgets; give one", id="two budgets"),
        pytest.param({"milliseconds": 9.0, "method": "paper"}, "milliseconds must be left out", id="other method"),
        pytest.param({"compute": float("nan")}, "compute", id="compute not a number"),
        pytest.param({"milliseconds": float("inf")}, "milliseconds", id="time without end"),
        pytest.param({"rate": 0.5}, "unknown key 'rate'", id="unknown option"),
        pytest.param({"samples": []}, "at least one sample", id="no samples"),
    ],
)
def test_bad_options_are_refused_before_anything_changes(options: dict[str, Any], message: str) -> None:
    model = make_model()
    with pytest.raises(QuotaError, match=message) as raised:
        quota.compress(model, processor(), **({"samples": SAMPLES} | options))
    assert "\n" not in str(raised.value)
    assert type(model.model.vision_tower.encoder.layers[0].mlp.fc1) is nn.Linear


@pytest.mark.parametrize(
    "again",
    [
        pytest.param(lambda model, result: quota.compress(model, processor(), SAMPLES), id="compress"),
        pytest.param(lambda model, result: quantize_only(model, processor(), SAMPLES), id="quantize_only"),
        pytest.param(lambda model, result: prune_only(model, result.recipe), id="prune_only"),
    ],
)
def test_a_compressed_model_is_not_compressed_again(again: Callable[[Any, Any], Any]) -> None:
    model, result = compressed()
    with pytest.raises(QuotaError, match="already"):
        again(model, result)


def test_a_model_that_drops_tokens_is_not_compressed() -> None:
    _, result = compressed()
    model = make_model()
    prune_only(model, result.recipe)
    with pytest.raises(QuotaError, match="drops tokens already"):
        quota.compress(model, processor(), SAMPLES)


def test_unsupported_architecture_is_refused() -> None:
    with pytest.raises(QuotaError, match="supported architectures"):
        quota.compress(make_model().model.language_model, processor(), SAMPLES)


def test_recipe_of_another_model_is_refused() -> None:
    _, result = compressed()
    with pytest.raises(QuotaError, match="another model"):
        prune_only(make_model(layers=5), result.recipe)
