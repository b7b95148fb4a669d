"""What a trace notes of two cuts, on written numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from quota.ops.choice import Cut
from quota.pruning.presence import Presence
from quota.pruning.ranking import Choice
from quota.pruning.trace import Trace

# Two samples of seven tokens: five and three of them visual, text around them, padding in front of the second.
IMAGES = torch.tensor([[-1, 0, 0, 0, 0, 0, -1], [-1, -1, -1, 0, 0, 0, -1]])
MASK = torch.tensor([[1] * 7, [0] + [1] * 6])


def choice(presence: Presence, scores: Tensor, counts: list[int]) -> Choice:
    """Keep the best `counts` of each sample; `scores` [B, V] of the visual tokens present, padded with anything."""
    visual = presence.visual
    places = torch.zeros(scores.shape, dtype=torch.long)
    valid = torch.zeros(scores.shape, dtype=torch.bool)
    kept = presence.text.clone()
    for row, count in enumerate(counts):
        own = visual[row].nonzero().flatten()
        places[row, : len(own)] = own + row * visual.shape[1]
        valid[row, : len(own)] = True
        kept[row, own[scores[row, : len(own)].topk(count).indices]] = True
    return Choice(Cut.of(kept), False, places, valid, scores)


def traced() -> Trace:
    presence, trace = Presence(IMAGES, MASK, past=0), Trace()
    hidden = torch.zeros(2, 7, 4)
    trace.begin(presence, 5)
    first = choice(presence, torch.tensor([[5.0, 1, 4, 2, 3], [1.0, 3, 2, 0, 0]]), [3, 2])
    trace.add(1, presence, first)
    hidden = presence.cut(1, first.cut, hidden, None)
    second = choice(presence, torch.tensor([[0.5, 0.9, 0.1], [0.2, 0.7, 0.0]]), [1, 1])
    trace.add(3, presence, second)
    return trace


def test_tokens_are_numbered_within_their_sample_and_shorter_rows_end_in_minus_one() -> None:
    trace = traced()
    assert trace.kept[1].tolist() == [[0, 2, 4], [1, 2, -1]]
    assert trace.kept[3].tolist() == [[2], [2]]


def test_scores_stand_at_the_numbers_of_their_tokens_and_dropped_ones_have_none() -> None:
    first, second = traced().scores[1], traced().scores[3]
    assert first[0].tolist() == [5, 1, 4, 2, 3]
    assert first[1, :3].tolist() == [1, 3, 2] and bool(first[1, 3:].isnan().all())
    present = [[True, False, True, False, True], [False, True, True, False, False]]
    assert (~second.isnan()).tolist() == present
    assert second[0, [0, 2, 4]].tolist() == torch.tensor([0.5, 0.9, 0.1]).tolist()


def test_tokens_that_enter_a_layer_are_summed_over_the_batch() -> None:
    assert traced().tokens_per_layer == [8, 8, 5, 5, 2]


def test_a_new_pass_forgets_the_one_before() -> None:
    trace = traced()
    trace.begin(Presence(IMAGES[:1], None, past=0), 3)
    assert (trace.kept, trace.scores, trace.tokens_per_layer) == ({}, {}, [5, 5, 5])
