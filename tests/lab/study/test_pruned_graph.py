"""Calibrating in the pruned graph: the sweep's tokens are those of the deployed, pruned model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.tiny_llava import LAYERS, VISUAL_TOKENS, make_model, make_samples, processor

from quota.attention.hook import attach_cache
from quota.calibration.storage import Storage
from quota.calibration.sweep import Sweep, calibrate
from quota.errors import QuotaError
from quota.models import family, fingerprint
from quota.progress import Meter
from quota.prompts import build_inputs
from quota.pruning.pruner import Pruner
from quota.pruning.recipe import PruningRecipe
from quota.scheme import QuantizationScheme
from quota_lab.study.pruned_graph import GivenSweep, JointSweep, kept_in_full_precision

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
    changes = {"layers": (-1, 2), "scorer": "information", "weights": {}} if before else {}
    model, chosen = make_model(), recipe(0.5, 0.25, scheme=scheme, **changes)
    inputs = [build_inputs(processor(), [sample]) for sample in SAMPLES]
    sweep = JointSweep(model, inputs, scheme, chosen)
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
    for sweep in (
        Sweep(make_model(), inputs, scheme, Storage(), Meter()),
        JointSweep(make_model(), inputs, scheme, recipe(1.0)),
    ):
        sweep.run()
        streams.append(sweep.deployed)
    assert all(torch.equal(one, two) for one, two in zip(*streams, strict=True))


def test_what_only_the_tower_knows_is_refused() -> None:
    inputs = [build_inputs(processor(), [sample]) for sample in SAMPLES[:1]]
    chosen = recipe(0.5, scorer="visionzip", weights={})
    with pytest.raises(QuotaError, match="'visionzip' reads the tower's attention"):
        JointSweep(make_model(), inputs, QuantizationScheme(), chosen)


def test_layers_before_the_first_cut_see_what_they_saw_and_those_behind_it_do_not() -> None:
    inputs = [build_inputs(processor(), [sample]) for sample in SAMPLES]
    model, plain = make_model(), make_model()
    JointSweep(model, inputs, QuantizationScheme(), recipe(0.5, 0.25)).run()
    calibrate(plain, inputs, QuantizationScheme())
    layers: list[list[Any]] = [list(family(each).decoder_layers) for each in (model, plain)]
    same = [
        torch.equal(one.mlp.up_proj.weight_packed, two.mlp.up_proj.weight_packed)
        for one, two in zip(*layers, strict=True)
    ]
    assert same == [True, True] + [False] * (LAYERS - 2)


def test_what_full_precision_keeps_is_kept() -> None:
    inputs = [build_inputs(processor(), [sample]) for sample in SAMPLES]
    chosen = recipe(0.5, 0.25).model_copy(update={"scheme": None, "weights": {"inter": 1.0}})
    model = make_model()
    kept = kept_in_full_precision(model, inputs, chosen)
    sweep = GivenSweep(model, inputs, QuantizationScheme(), chosen)
    sweep.run()
    for sample, numbers in enumerate(kept):
        presence = sweep._presences[sample]
        places = (inputs[sample]["input_ids"][0] == model.config.image_token_id).nonzero().flatten()
        left = presence.index[0][presence.images[0] >= 0]
        assert left.tolist() == places[numbers[3]].tolist()
