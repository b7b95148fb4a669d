"""The typical prompt has the measures of a sample, and nothing of what it says and shows."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from support.tiny_llava import VISUAL_TOKENS, make_model, make_samples, processor

from quota.allocation.prompt import TypicalPrompt, typical_inputs
from quota.errors import QuotaError
from quota.samples import Sample


@pytest.mark.parametrize("video", [False, True])
def test_it_has_the_measures_of_the_sample(video: bool) -> None:
    pictures = tuple(Image.new("RGB", size, "red") for size in ((30, 20), (7, 9)))
    given = Sample(pictures, "how many cars stand in this street today", "nine", video=video)
    stand_in = TypicalPrompt.of(given).sample()
    assert TypicalPrompt.of(stand_in) == TypicalPrompt.of(given)
    assert [picture.size for picture in stand_in.pictures()] == [(30, 20), (7, 9)]
    assert len(stand_in.question) == len(given.question) and stand_in.question != given.question
    assert stand_in.video == video and stand_in.answer is None


def test_it_is_the_same_every_time() -> None:
    prompt = TypicalPrompt(((8, 8),), 5)
    first, second = (prompt.sample().pictures()[0].tobytes() for _ in range(2))
    assert first == second and len(set(first)) > 100


def test_the_model_must_see_as_many_tokens_as_were_measured() -> None:
    model, prompt = make_model(), TypicalPrompt.of(make_samples(1)[0])
    assert typical_inputs(model, processor(), prompt, VISUAL_TOKENS)["input_ids"].shape[0] == 1
    with pytest.raises(QuotaError, match="makes 16 visual tokens of the typical prompt, 99 were measured"):
        typical_inputs(model, processor(), prompt, 99)


def test_measures_that_no_question_has_are_refused(tmp_path: Path) -> None:
    with pytest.raises(QuotaError, match="pictures of 1 to"):
        TypicalPrompt(((0, 5),), 3)
    with pytest.raises(QuotaError, match="pictures of 1 to"):
        TypicalPrompt((), 3)
    with pytest.raises(QuotaError, match="at most 100,000 characters"):
        TypicalPrompt(((5, 5),), -1)
