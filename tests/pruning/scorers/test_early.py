"""The score of tokens as they entered the decoder: DivPrune's order there, whatever later layers make of them."""

from __future__ import annotations

import pytest
import torch
from support.pruned import recipe_for
from support.tiny import tiny_batch, tiny_llava, tiny_prompt

from quota.errors import QuotaError
from quota.pruning.pruner import Pruner, record
from quota.pruning.scorers import Signals, scorer

BATCH = [tiny_prompt(2, 3, seed=1), tiny_prompt(1, 5, seed=2)]


def test_is_farthest_first_of_what_entered() -> None:
    draw = torch.Generator().manual_seed(0)
    entered, now = torch.randn(2, 2, 9, 8, generator=draw)
    valid = torch.ones(2, 9, dtype=torch.bool)
    first = scorer("divprune").score(Signals(entered, valid), {})
    assert torch.equal(scorer("early").score(Signals(now, valid, entering=entered), {}), first)
    assert not torch.equal(scorer("divprune").score(Signals(now, valid), {}), first)


def test_without_them_it_says_so() -> None:
    with pytest.raises(QuotaError, match="as they entered"):
        scorer("early").score(Signals(torch.zeros(1, 2, 4), torch.ones(1, 2, dtype=torch.bool)), {})


def test_every_layer_keeps_what_the_first_place_would() -> None:
    model, kept = tiny_llava(), []
    for name, layer in (("divprune", -1), ("early", -1), ("early", 0), ("early", 1)):
        recipe = recipe_for(model, scorer=name, layers=(layer,), keep_ratios=(0.5,), keep=0.5)
        with torch.no_grad(), Pruner(model, recipe), record(model) as trace:
            model(**tiny_batch(BATCH))
        kept.append(trace.kept[layer])
    assert all(torch.equal(kept[0], other) for other in kept[1:])


def test_a_later_cut_keeps_the_first_of_the_same_order() -> None:
    model, kept = tiny_llava(), []
    for layers, ratios in (((-1, 1), (0.6, 0.3)), ((1,), (0.3,))):
        recipe = recipe_for(model, scorer="early", layers=layers, keep_ratios=ratios, keep=0.3)
        with torch.no_grad(), Pruner(model, recipe), record(model) as trace:
            model(**tiny_batch(BATCH))
        kept.append(trace.kept[1])
    assert torch.equal(*kept)
