from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from support.tiny_llava import LAYERS, VISUAL_TOKENS, make_model, make_samples, processor
from torch import Tensor

from quota.attention.hook import attach_cache
from quota.attention.moments import KeyMoments
from quota.calibration.storage import Storage
from quota.calibration.sweep import Sweep, calibrate
from quota.errors import QuotaError
from quota.models import family
from quota.progress import Meter
from quota.prompts import build_inputs
from quota.quantization.embedding import QuantizedEmbedding
from quota.quantization.linear import W4A4Linear
from quota.scheme import QuantizationScheme

Inputs = list[Mapping[str, Any]]


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    return [build_inputs(processor(), [sample]) for sample in make_samples(5)]


@contextmanager
def layer_inputs(model: Any) -> Iterator[list[Tensor]]:
    """What enters each decoder layer during the forward passes of the block, and the last layer's output."""
    seen: list[Tensor] = []
    layers = family(model).decoder_layers
    hooks = [layer.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for layer in layers]
    hooks.append(layers[-1].register_forward_hook(lambda _, args, output: seen.append(output)))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def whole_model(model: Any, sample: Mapping[str, Any]) -> list[Tensor]:
    with torch.no_grad(), layer_inputs(model) as seen:
        model(**sample)
    return seen


SCHEMES = {
    "default": QuantizationScheme(),
    "no rotation": QuantizationScheme(hadamard=0),
    "16-bit KV": QuantizationScheme(kv_bits=16),
    "decoder only": QuantizationScheme(modules=("decoder",)),
    "tower and projector": QuantizationScheme(modules=("tower", "projector")),
    "16-bit activations": QuantizationScheme(activation_bits=16),
    "round to nearest": QuantizationScheme(weight_rounding="rtn"),
    "KV alone": QuantizationScheme(weight_bits=16, activation_bits=16),
    "learned": QuantizationScheme(transforms="learned"),
    "learned, decoder only": QuantizationScheme(transforms="learned", modules=("decoder",)),
    "learned, KV alone": QuantizationScheme(transforms="learned", weight_bits=16, activation_bits=16),
    "learned, round to nearest": QuantizationScheme(transforms="learned", weight_rounding="rtn"),
}


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES.keys())
def test_both_streams_are_what_the_whole_models_compute(scheme: QuantizationScheme, inputs: Inputs) -> None:
    model = make_model()
    sweep = Sweep(model, inputs, scheme, Storage(), Meter())
    sweep.run()
    attach_cache(model, scheme)
    original = make_model()
    for sample, exact, deployed in zip(inputs, sweep.exact, sweep.deployed, strict=True):
        assert torch.equal(exact, whole_model(original, sample)[-1])
        assert torch.equal(deployed, whole_model(model, sample)[-1])


def test_curves_are_their_definitions_on_the_whole_models(inputs: Inputs) -> None:
    model = make_model()
    curves = calibrate(model, inputs, QuantizationScheme()).curves
    attach_cache(model, QuantizationScheme())
    original = make_model()
    model.set_attn_implementation("eager")
    errors: list[list[float]] = [[] for _ in range(LAYERS)]
    shares: list[list[float]] = [[] for _ in range(LAYERS)]
    cosines: list[list[float]] = [[] for _ in range(LAYERS)]
    for sample in inputs:
        visual = (sample["input_ids"] == model.config.image_token_id)[0]
        with torch.no_grad():
            attentions = model(**sample, output_attentions=True).attentions
        streams = zip(whole_model(original, sample), whole_model(model, sample), strict=True)
        for layer, (x, xq) in enumerate(list(streams)[:-1]):
            errors[layer].append(float((xq - x).norm() / (x.norm() + 1e-6)))
            received = attentions[layer][0].mean(dim=0)[~visual].mean(dim=0)[visual]
            shares[layer].append(float(received.sort(descending=True).values[:10].sum()))
            tokens = xq[0, visual]
            pairs = [
                float(torch.cosine_similarity(tokens[i], tokens[j], dim=0))
                for i in range(len(tokens))
                for j in range(i)
            ]
            cosines[layer].append(statistics.median_low(pairs))
    assert curves.sensitivity == pytest.approx([statistics.median(layer) for layer in errors], rel=1e-5)
    assert curves.concentration == pytest.approx([statistics.median(layer) for layer in shares], rel=1e-4)
    assert curves.redundancy == pytest.approx([statistics.median(layer) for layer in cosines], rel=1e-4)
    quartiles = [statistics.quantiles(layer, n=4, method="inclusive") for layer in shares]
    assert curves.concentration_iqr == pytest.approx([q[2] - q[0] for q in quartiles], rel=1e-3, abs=1e-6)


def outliers(model: Any) -> Any:
    """Every seventh channel of a norm twenty times as large, as in models of the real world."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter[::7] *= 20
    return model


def test_learned_transforms_stray_less_than_a_rotation(inputs: Inputs) -> None:
    strayed = []
    for transforms in ("hadamard", "learned"):
        scheme = QuantizationScheme(transforms=transforms)
        strayed.append(calibrate(outliers(make_model()), inputs, scheme).curves.sensitivity[-1])
    assert strayed[1] < 0.9 * strayed[0]


def test_calibration_reports_tokens_and_layers(inputs: Inputs) -> None:
    steps: list[tuple[int, int]] = []
    model = make_model()
    expected = len(family(model).linears())
    calibration = calibrate(model, inputs, QuantizationScheme(), lambda done, total: steps.append((done, total)))
    assert calibration.reference_tokens == VISUAL_TOKENS
    assert calibration.quantized == expected == sum(type(m) is W4A4Linear for m in model.modules())
    assert [done for done, _ in steps] == sorted({done for done, _ in steps})
    assert steps[-1][0] == steps[-1][1]


@pytest.mark.parametrize("modules", [("tower",), ("projector",), ("decoder",), ("tower", "decoder")])
def test_only_the_parts_of_the_scheme_are_quantized(modules: tuple[Any, ...], inputs: Inputs) -> None:
    model = make_model()
    chosen = {name for name, _ in family(model).linears(modules)}
    calibrate(model, inputs[:2], QuantizationScheme(modules=modules))
    quantized = {name: type(module) for name, module in model.named_modules() if isinstance(module, W4A4Linear)}
    assert {name for name, kind in quantized.items() if kind is W4A4Linear} == chosen
    # The embedding goes with the decoder, and takes the head that is tied to it along.
    assert (QuantizedEmbedding in quantized.values()) == ("decoder" in modules)


@pytest.mark.parametrize("transforms", ["hadamard", "learned"])
def test_calibration_is_deterministic(transforms: Any, inputs: Inputs) -> None:
    first, second = make_model(), make_model()
    one = calibrate(first, inputs, QuantizationScheme(transforms=transforms))
    two = calibrate(second, inputs, QuantizationScheme(transforms=transforms))
    assert one == two
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


@pytest.mark.parametrize("transforms", ["hadamard", "learned"])
def test_the_order_of_samples_changes_no_bit(transforms: Any, inputs: Inputs) -> None:
    scheme, models = QuantizationScheme(transforms=transforms), []
    for order in ([0, 1, 2, 3, 4], [3, 1, 4, 0, 2]):
        models.append(make_model())
        calibrate(models[-1], [inputs[number] for number in order], scheme)
    first, second = (model.state_dict() for model in models)
    assert not [name for name, tensor in first.items() if not torch.equal(tensor, second[name])]


def test_every_sample_counts_once_in_the_moments_of_keys(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of the fold runs the first sample once more."""
    seen: list[int] = []
    add = KeyMoments.add
    monkeypatch.setattr(KeyMoments, "add", lambda self, query, key: (seen.append(key.shape[2]), add(self, query, key)))
    calibrate(make_model(), inputs, QuantizationScheme())
    assert seen == LAYERS * [sample["input_ids"].shape[1] for sample in inputs]


def test_sensitivity_is_zero_where_nothing_is_quantized(inputs: Inputs) -> None:
    scheme = QuantizationScheme(weight_bits=16, activation_bits=16, kv_bits=16)
    calibration = calibrate(make_model(), inputs, scheme)
    assert calibration.quantized == 0
    assert calibration.curves.sensitivity == [0.0] * LAYERS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda ids: torch.full_like(ids, 7), "picture", id="no picture"),
        pytest.param(lambda ids: ids[ids == 3][None], "text", id="no text"),
    ],
)
def test_sample_without_picture_or_text_is_refused(change: Any, message: str, inputs: Inputs) -> None:
    sample = dict(inputs[0]) | {"input_ids": change(inputs[0]["input_ids"])}
    with pytest.raises(QuotaError, match=message):
        calibrate(make_model(), [sample], QuantizationScheme())


def test_no_samples_are_refused() -> None:
    with pytest.raises(QuotaError, match="at least one sample"):
        calibrate(make_model(), [], QuantizationScheme())
