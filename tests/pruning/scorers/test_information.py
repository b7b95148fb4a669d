"""QUOTA's own score: a written example, what it is for, and that a pass keeps what it chooses."""

from __future__ import annotations

import pytest
import torch
from support.pruned import recipe_for
from support.tiny import tiny_batch, tiny_llava, tiny_prompt
from torch import Tensor

from quota.errors import QuotaError
from quota.ops.choice import top_k
from quota.ops.reference.tokens import information
from quota.pruning.pruner import Pruner, record
from quota.pruning.scorers import Signals
from quota.pruning.scorers.information import NOISE, score


def given(hidden: Tensor, count: int) -> Signals:
    hidden = hidden.float()[None]
    return Signals(hidden, torch.ones(hidden.shape[:2], dtype=torch.bool), budget=torch.tensor([count]))


def chosen(hidden: Tensor, count: int) -> list[int]:
    signals = given(hidden, count)
    return top_k(score(signals, {}), [count], signals.valid)[0].tolist()


def test_a_written_example() -> None:
    # Squares of the lengths 4, 1 and 1; the third token is half of the first, turned by nothing.
    hidden = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    noise = NOISE * (4 + 1 + 1) / 3
    left = 1 - 2 * 2 / (4 + noise)
    torch.testing.assert_close(score(given(hidden, 2), {}), torch.tensor([[4.0, 1.0, left]]))


def test_of_two_that_look_alike_the_longer_goes_on() -> None:
    assert chosen(torch.tensor([[1.0, 0, 0], [3.0, 0, 0], [0, 2.0, 0]]), 2) == [1, 2]


def test_a_mixture_of_kept_tokens_tells_nothing_new() -> None:
    # The third is as far from the first two as those are from each other in angle, or nearly; the fourth is short.
    hidden = torch.tensor([[4.0, 0, 0], [0, 4.0, 0], [2.5, 2.5, 0], [0, 0, 1.0]])
    assert chosen(hidden, 3) == [0, 1, 3]


def test_a_surface_has_more_tokens_than_a_speck() -> None:
    surface, speck = torch.tensor([[10.0, 0.0]]).expand(9, 2), torch.tensor([[0.0, 0.5]])
    assert len(chosen(torch.cat([surface, speck]), 3)) == 3
    assert 9 not in chosen(torch.cat([surface, speck]), 3)
    assert 9 in chosen(torch.cat([surface, 8 * speck]), 3)


def test_it_is_told_how_many_go_on() -> None:
    signals = Signals(torch.zeros(1, 2, 4), torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(QuotaError, match="how many tokens go on"):
        score(signals, {})


@pytest.mark.parametrize("layer", [-1, 0, 1])
def test_a_pass_keeps_what_the_operator_chooses(layer: int) -> None:
    model, prompt = tiny_llava(), tiny_batch([tiny_prompt(1, 3, seed=1)])
    recipe = recipe_for(model, scorer="information", layers=(layer,), keep_ratios=(0.5,), keep=0.5)
    with torch.no_grad():
        states = model(**prompt, output_hidden_states=True).hidden_states[max(layer, 0)]
        with Pruner(model, recipe), record(model) as trace:
            model(**prompt)
    visual = prompt["input_ids"] == model.config.image_token_id
    tokens, there = states[visual][None], torch.ones(1, int(visual.sum()), dtype=torch.bool)
    kept = trace.kept[layer][0].tolist()
    expected = top_k(information(tokens, there, torch.tensor([len(kept)]), NOISE), [len(kept)], there)
    assert kept == expected[0].tolist()
