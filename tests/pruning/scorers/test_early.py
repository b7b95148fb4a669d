"""The score of tokens as they entered the decoder: that of peaks there, whatever later layers make of them."""

from __future__ import annotations

from dataclasses import replace

import torch
from support.pruned import recipe_for
from support.tiny import tiny_batch, tiny_llava, tiny_prompt

from quota.pruning.pruner import Pruner, record
from quota.pruning.scorers import Signals, scorer


def test_is_peaks_of_what_entered() -> None:
    draw = torch.Generator().manual_seed(0)
    entered, now = torch.randn(2, 2, 9, 8, generator=draw)
    valid = torch.ones(2, 9, dtype=torch.bool)
    first = scorer("peaks").score(Signals(entered, valid), {})
    later = Signals(now, valid, inter=torch.rand(2, 9, generator=draw), entering=entered)
    assert torch.equal(scorer("early").score(later, {}), first)
    assert not torch.equal(scorer("peaks").score(replace(later, entering=None), {}), first)


def test_every_layer_keeps_what_the_first_place_would() -> None:
    model = tiny_llava()
    batch = tiny_batch([tiny_prompt(2, 3, seed=1), tiny_prompt(1, 5, seed=2)])
    kept = []
    for layer in (-1, 0, 1):
        recipe = recipe_for(model, scorer="early", layers=(layer,), keep_ratios=(0.5,), keep=0.5)
        with torch.no_grad(), Pruner(model, recipe), record(model) as trace:
            model(**batch)
        kept.append(trace.kept[layer])
    assert torch.equal(kept[0], kept[1]) and torch.equal(kept[0], kept[2])


def test_a_later_cut_looks_at_what_an_earlier_one_has_left() -> None:
    model = tiny_llava()
    batch = tiny_batch([tiny_prompt(1, 3, seed=1), tiny_prompt(1, 5, seed=2)])
    recipe = recipe_for(model, scorer="early", layers=(-1, 1), keep_ratios=(0.6, 0.3), keep=0.3)
    with torch.no_grad(), Pruner(model, recipe), record(model) as trace:
        model(**batch)
    for early, late in zip(trace.kept[-1], trace.kept[1], strict=True):
        assert set(late.tolist()) < set(early.tolist())
