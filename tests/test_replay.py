"""Passes that begin at a layer give what whole passes give, in every family, and compute less."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import TINY
from tiny_llava import make_model, make_samples, processor
from torch import Tensor
from transformers import BatchFeature

from quota.models import family, fingerprint
from quota.pruning import Pruner
from quota.quantization.kv_cache import attach_cache
from quota.recipe import PruningRecipe
from quota.replay import Replay
from quota.samples import build_inputs
from quota.scheme import QuantizationScheme

SCHEME = QuantizationScheme()


def prompts_for(name: str) -> tuple[Any, list[BatchFeature]]:
    """A tiny model, and a batch of unequal prompts and one of a single prompt."""
    tiny = TINY[name]
    model = tiny.build("sdpa")
    small, large = tiny.sizes
    unequal = [tiny.prompt([small, large], 5, seed=6), tiny.prompt([large], 4, seed=7)]
    return model, [BatchFeature(tiny.batch(rows)) for rows in (unequal, [tiny.prompt([small], 3, seed=4)])]


def whole(model: Any, prompts: list[BatchFeature]) -> Tensor:
    with torch.inference_mode():
        return torch.cat([model(**prompt, logits_to_keep=1).logits[:, -1] for prompt in prompts])


def pruner(model: Any, layer: int, keep: float) -> Pruner:
    recipe = PruningRecipe(
        layers=(layer,),
        keep_ratios=(keep,),
        keep=keep,
        reference_tokens=16,
        model_fingerprint=fingerprint(model),
        scorer="peaks",
        scheme=SCHEME,
    )
    return Pruner(model, recipe, SCHEME)


@pytest.mark.parametrize("name", TINY)
def test_a_pass_that_begins_at_a_layer_is_the_whole_pass(name: str) -> None:
    model, prompts = prompts_for(name)
    attach_cache(model, SCHEME)
    replay = Replay(model, prompts)
    assert torch.equal(replay.logits(), whole(model, prompts))
    for layer in (-1, 0, 2, 3):
        replay.begin_at(layer)
        for keep in (0.5, 0.2):
            active = pruner(model, layer, keep).attach()
            try:
                assert torch.equal(replay.logits(), whole(model, prompts)), (layer, keep)
            finally:
                active.detach()


def test_what_is_in_front_does_not_compute() -> None:
    model = make_model()
    parts = family(model)
    replay = Replay(model, [build_inputs(processor(), make_samples(2))])
    replay.logits()
    replay.begin_at(2)
    called = []
    inner = [block.mlp for block in (*parts.tower_blocks, *parts.decoder_layers)]
    handles = [module.register_forward_hook(lambda module, *_: called.append(module)) for module in inner]
    replay.logits()
    assert called == [layer.mlp for layer in parts.decoder_layers[2:]]
    for handle in handles:
        handle.remove()
    assert "forward" not in vars(parts.decoder_layers[0])
