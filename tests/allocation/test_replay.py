"""Passes that begin at a layer give what whole passes give, in every family, and compute less."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.families import TINY
from support.tiny_llava import make_model, make_samples, processor
from torch import Tensor
from transformers import BatchFeature

from quota.allocation.replay import Replay
from quota.attention.hook import attach_cache
from quota.models import family, fingerprint
from quota.prompts import build_inputs
from quota.pruning.pruner import Pruner
from quota.pruning.recipe import PruningRecipe
from quota.scheme import QuantizationScheme

pytestmark = pytest.mark.slow

SCHEME = QuantizationScheme()


def prompts_for(name: str) -> tuple[Any, list[BatchFeature]]:
    """A tiny model, and a batch of unequal prompts and one of a single prompt."""
    tiny = TINY[name]
    model = tiny.build("sdpa")
    small, large = tiny.sizes
    unequal = [tiny.prompt([small, large], 5, seed=6), tiny.prompt([large], 4, seed=7)]
    return model, [BatchFeature(tiny.batch(rows)) for rows in (unequal, [tiny.prompt([small], 3, seed=4)])]


def answers_to(prompts: list[BatchFeature]) -> list[Tensor]:
    """One of four words, and one of a single word, which needs no second pass."""
    return [torch.arange(3, 3 + len(p["input_ids"]) * n).view(-1, n) for p, n in zip(prompts, (4, 1), strict=True)]


def whole(model: Any, prompts: list[BatchFeature]) -> list[Tensor]:
    """What has played nothing yet computes everything."""
    return list(Replay(model, prompts, answers_to(prompts)).logits())


def alike(found: Iterator[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def pruner(model: Any, layer: int, keep: float, scheme: QuantizationScheme | None = SCHEME) -> Pruner:
    recipe = PruningRecipe(
        layers=(layer,),
        keep_ratios=(keep,),
        keep=keep,
        reference_tokens=16,
        model_fingerprint=fingerprint(model),
        scorer="information",
        scheme=scheme,
    )
    return Pruner(model, recipe, scheme)


@pytest.mark.parametrize("name", TINY)
def test_an_answer_given_at_once_has_the_logits_of_one_generated_word_by_word(name: str) -> None:
    model, prompts = prompts_for(name)
    prompt = prompts[0]
    attach_cache(model, None)
    active = pruner(model, 0, 0.5, None).attach()
    try:
        found = model.generate(
            **prompt,
            max_new_tokens=4,
            min_new_tokens=4,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        answer = found.sequences[:, prompt["input_ids"].shape[1] :]
        (given,) = Replay(model, [prompt], [answer]).logits()
    finally:
        active.detach()
    torch.testing.assert_close(given, torch.stack(found.logits, dim=1), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", TINY)
def test_a_pass_that_begins_at_a_layer_is_the_whole_pass(name: str) -> None:
    model, prompts = prompts_for(name)
    attach_cache(model, SCHEME)
    replay = Replay(model, prompts, answers_to(prompts))
    assert alike(replay.logits(), whole(model, prompts))
    for layer in (-1, 0, 2, 3):
        replay.begin_at(layer)
        for keep in (0.5, 0.2):
            active = pruner(model, layer, keep).attach()
            try:
                assert alike(replay.logits(), whole(model, prompts)), (layer, keep)
            finally:
                active.detach()


def test_what_is_in_front_does_not_compute() -> None:
    model = make_model()
    parts = family(model)
    attach_cache(model, SCHEME)
    replay = Replay(model, [build_inputs(processor(), make_samples(2))], [torch.tensor([[3, 4], [5, 6]])])
    list(replay.logits())
    replay.begin_at(2)
    called = []
    inner = [block.mlp for block in (*parts.tower_blocks, *parts.decoder_layers)]
    handles = [module.register_forward_hook(lambda module, *_: called.append(module)) for module in inner]
    list(replay.logits())
    # For the prompts, and for the answers.
    assert called == [layer.mlp for layer in parts.decoder_layers[2:]] * 2
    for handle in handles:
        handle.remove()
    assert "forward" not in vars(parts.decoder_layers[0])
