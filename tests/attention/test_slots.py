"""Cache layers with slots, against a list of tokens for every sample."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quota.attention.slots import SlotLayer, append
from quota.errors import QuotaError
from quota.ops.choice import right_align


def states(positions: Tensor) -> Tensor:
    """Keys that tell which token they are of: [B, T] -> [B, 1, T, 1]."""
    return positions[:, None, :, None].float()


class Model:
    """What a `SlotLayer` must hold: the tokens of each sample, and how many were seen."""

    def __init__(self, batch: int) -> None:
        self.rows: list[list[int]] = [[] for _ in range(batch)]
        self.seen = 0

    def check(self, layer: SlotLayer) -> None:
        assert layer.get_seq_length() == self.seen
        for row, sample in enumerate(self.rows):
            filled = layer.positions[row] >= 0
            assert layer.positions[row][filled].tolist() == sample
            assert layer.keys[row, 0, :, 0][filled].tolist() == sample
            assert layer.valid(None)[row].sum() == len(sample)
        if layer.in_order:
            assert self.rows == [list(range(self.seen))] * len(self.rows)
        if not layer.ragged:
            assert (layer.positions >= 0).all()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_sequence_of_operations(data: st.DataObject) -> None:
    batch = data.draw(st.integers(1, 3))
    layer, model = SlotLayer(), Model(batch)
    for step in range(data.draw(st.integers(1, 6))):
        if step == 0:
            operation = "append"
        else:
            operation = data.draw(st.sampled_from(["append", "skip", "keep", "crop", "reorder", "repeat"]))
        size = len(model.rows)
        if operation == "append":
            count = data.draw(st.integers(1, 5))
            new = torch.arange(model.seen, model.seen + count).expand(size, -1)
            layer.update(states(new), states(new))
            model.rows = [row + new[0].tolist() for row in model.rows]
            model.seen += count
        elif operation == "skip":
            # Samples take up different ones of the next tokens, as behind a pruned layer.
            mask = torch.tensor([data.draw(st.lists(st.booleans(), min_size=4, max_size=4)) for _ in range(size)])
            places, filled = right_align(mask)
            new = (places + model.seen).masked_fill(~filled, -1)
            layer.expect(new, 4, bool((new < 0).any()))
            layer.update(states(new), states(new))
            model.rows = [row + new[i][filled[i]].tolist() for i, row in enumerate(model.rows)]
            model.seen += 4
        elif operation == "keep":
            drop = data.draw(st.sets(st.integers(0, 20)))
            layer.keep((layer.positions >= 0) & ~torch.isin(layer.positions, torch.tensor(sorted(drop))))
            model.rows = [[token for token in row if token not in drop] for row in model.rows]
        elif operation == "crop":
            count = data.draw(st.integers(0, 6))
            layer.crop(-count)
            model.seen = max(0, model.seen - count)
            model.rows = [[token for token in row if token < model.seen] for row in model.rows]
        elif operation == "reorder":
            order = [data.draw(st.integers(0, size - 1)) for _ in range(size)]
            layer.reorder_cache(torch.tensor(order))
            model.rows = [model.rows[i] for i in order]
        else:
            layer.batch_repeat_interleave(2)
            model.rows = [row for row in model.rows for _ in range(2)]
        model.check(layer)
        length, offset = layer.get_mask_sizes(3)
        assert length == layer.held + 3 and offset + length == model.seen + 3


def test_a_mask_hides_the_tokens_it_masks() -> None:
    layer = SlotLayer()
    layer.expect(torch.tensor([[-1, 1, 3], [0, 2, 3]]), 4, True)
    layer.update(torch.zeros(2, 1, 3, 1), torch.zeros(2, 1, 3, 1))
    mask = torch.tensor([[1, 1, 1, 0, 1], [0, 1, 1, 1, 1]])
    assert layer.valid(mask).tolist() == [[False, True, False], [False, True, True]]


def test_reset_forgets_everything() -> None:
    layer = SlotLayer()
    layer.expect(torch.tensor([[-1, 1]]), 3, True)
    layer.update(torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4))
    layer.reset()
    assert (layer.get_seq_length(), layer.held, layer.nbytes()) == (0, 0, 0)
    assert layer.in_order and not layer.ragged and not layer.is_initialized


def test_crop_wants_a_negative_number() -> None:
    with pytest.raises(QuotaError, match="negative"):
        SlotLayer().crop(3)


class TestMemory:
    def test_doubles_when_it_is_full(self) -> None:
        memory, copies = append(None, 0, torch.zeros(2, 5), dim=1), 0
        assert memory.shape == (2, 5)
        for used in range(5, 80):
            grown = append(memory, used, torch.full((2, 1), float(used)), dim=1)
            copies += grown is not memory
            memory = grown
        assert copies == 4 and memory.shape == (2, 80)
        assert memory[1].tolist() == [0.0] * 5 + list(range(5, 80))

    def test_more_than_twice_as_much_at_once(self) -> None:
        memory = append(append(None, 0, torch.ones(1, 2), dim=1), 2, torch.zeros(1, 9), dim=1)
        assert memory.tolist() == [[1.0] * 2 + [0.0] * 9]

    def test_what_was_appended_is_copied(self) -> None:
        layer, given = SlotLayer(), torch.zeros(1, 1, 4, 1)
        layer.update(given, given)
        layer.crop(-2)
        layer.update(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
        assert not given.any()
        assert layer.keys.flatten().tolist() == [0, 0, 1]

    def test_dropped_slots_are_given_back(self) -> None:
        layer = SlotLayer()
        layer.update(torch.zeros(1, 1, 64, 1), torch.zeros(1, 1, 64, 1))
        layer.keep(torch.arange(64)[None] < 8)
        assert layer.keys.untyped_storage().nbytes() == 8 * 4

    def test_halves_are_taken_under_autocast(self) -> None:
        layer, given = SlotLayer(), torch.arange(8.0).view(2, 1, 4, 1).half()
        layer.update(given, given)
        with torch.autocast("cpu", torch.bfloat16):
            layer.keep(torch.tensor([[True, False, True, False], [False, True, True, False]]))
        assert layer.keys.flatten().tolist() == [0, 2, 5, 6]

    def test_filled_in_inference_mode_and_continued_outside(self) -> None:
        layer = SlotLayer()
        with torch.inference_mode():
            for position in range(3):
                layer.update(states(torch.tensor([[position]])), states(torch.tensor([[position]])))
        layer.update(states(torch.tensor([[3]])), states(torch.tensor([[3]])))
        assert layer.keys.flatten().tolist() == [0, 1, 2, 3]


class TestSlidingWindow:
    def filled(self, window: int, tokens: int) -> SlotLayer:
        layer = SlotLayer(window)
        for token in range(tokens):
            layer.update(*[states(torch.tensor([[token], [token]]))] * 2)
            layer.forget()
        return layer

    @pytest.mark.parametrize("tokens", [2, 4, 5, 23])
    def test_it_holds_what_the_next_token_sees(self, tokens: int) -> None:
        layer = self.filled(5, tokens)
        expected = list(range(tokens))[-4:]
        assert layer.positions.tolist() == [expected, expected]
        assert layer.keys[:, 0, :, 0].tolist() == [expected, expected]
        assert layer.get_mask_sizes(1) == (len(expected) + 1, tokens - len(expected))
        assert layer.in_order

    def test_a_slot_that_one_sample_sees_stays(self) -> None:
        layer = SlotLayer(5)
        layer.update(*[states(torch.arange(8).expand(2, -1))] * 2)
        layer.keep(torch.tensor([[1, 1, 0, 0, 0, 1, 1, 1], [1, 0, 0, 0, 1, 1, 1, 1]]).bool())
        layer.forget()
        # The next token sees 4 to 7.
        assert layer.positions.tolist() == [[1, 5, 6, 7], [4, 5, 6, 7]]

    def test_nothing_can_be_cropped_from_what_is_forgotten(self) -> None:
        with pytest.raises(QuotaError, match="sliding window"):
            self.filled(5, 9).crop(-2)

    def test_recording_keeps_all(self) -> None:
        layer = SlotLayer(5)
        layer.activate_past_recording()
        layer.update(*[states(torch.arange(9)[None])] * 2)
        layer.forget()
        layer.crop(-2)
        assert layer.positions.tolist() == [list(range(7))]


def test_skipped_tokens_are_seen_and_masked_as_if_they_were_held() -> None:
    whole, part = SlotLayer(), SlotLayer(window=4)
    for layer in (whole, part):
        layer.skip(6)
        assert layer.get_seq_length() == 6 and layer.held == 0
    assert whole.get_mask_sizes(2) == (8, 0)
    # Of a window of 4, the next token's own place leaves 3.
    assert part.get_mask_sizes(2) == (5, 3)
