"""What the rows of a pass are to a request: a prompt, a prompt with a tail, one token, and nothing else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from quota.serving.vllm.batch import part_of


def picture(offset: int, length: int, words: tuple[int, ...] = ()) -> Any:
    """vLLM's place of a picture, in which some places hold words."""
    inside = None
    if words:
        inside = torch.ones(length, dtype=torch.bool)
        inside[list(words)] = False
    place = SimpleNamespace(offset=offset, length=length, is_embed=inside, get_num_embeds=lambda: length - len(words))
    return SimpleNamespace(mm_position=place)


def test_a_prompt_knows_its_pictures_in_the_order_in_which_they_stand() -> None:
    part = part_of("a", 0, 9, 9, [picture(5, 3, words=(1,)), picture(1, 2)])
    assert part.presence is not None
    assert part.presence.images.tolist() == [[-1, 0, 0, -1, -1, 1, -1, 1, -1]]
    assert (part.prompt, part.tail, sorted(part.sizes)) == (9, 0, [2, 2])


def test_what_was_given_before_stands_behind_the_prompt() -> None:
    part = part_of("a", 0, 12, 9, [picture(1, 2)])
    assert part.presence is not None
    assert part.presence.length == 9
    assert (part.prompt, part.tail) == (9, 3)


def test_one_token_has_no_prompt() -> None:
    part = part_of("a", 11, 1, 9, [picture(1, 2)])
    assert part.presence is None
    assert (part.seen, part.rows, part.sizes) == (11, 1, [2])


@pytest.mark.parametrize(("seen", "rows"), [(0, 4), (4, 5), (9, 2)])
def test_a_piece_of_a_prompt_is_a_defect(seen: int, rows: int) -> None:
    with pytest.raises(RuntimeError, match="whole"):
        part_of("a", seen, rows, 9, [])
