"""What reaches a model of a question about pictures."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image
from support.families.own import paligemma
from support.tiny_llava import make_model

from quota.errors import QuotaError
from quota.prompts import build_inputs, generate, taken
from quota.samples import Sample

RED, BLUE = Image.new("RGB", (50, 30), "red"), Image.new("RGB", (20, 40), "blue")


def test_several_pictures_stand_in_one_prompt_in_their_order(tiny_processor: Any) -> None:
    inputs = build_inputs(tiny_processor, [Sample((RED, BLUE), "what is this"), Sample(RED, "what is this")])
    counts = (inputs["input_ids"] == tiny_processor.image_token_id).sum(dim=1)
    assert counts.tolist() == [32, 16]
    alone = [build_inputs(tiny_processor, [Sample(one, "what")])["pixel_values"][0] for one in (RED, BLUE, RED)]
    assert all((pixels == own).all() for pixels, own in zip(inputs["pixel_values"], alone, strict=True))


def test_labels_that_a_processor_always_adds_are_left_out() -> None:
    processor = paligemma()
    sample = Sample(RED, "w20 w21")
    assert "labels" in processor(images=RED, text="<image>w20", return_tensors="pt")
    assert set(build_inputs(processor, [sample])) == {"input_ids", "attention_mask", "token_type_ids", "pixel_values"}


def test_paligemma_gets_the_prompt_it_was_trained_on() -> None:
    processor = paligemma()
    assert processor.chat_template is None
    ids = build_inputs(processor, [Sample((RED, BLUE), "w20 w21")])["input_ids"][0].tolist()
    image, begin = processor.image_token_id, processor.tokenizer.bos_token_id
    assert ids == [image] * 32 + [begin, 20, 21]


def test_generate_hands_on_what_the_model_takes(tiny_processor: Any) -> None:
    model = make_model()
    inputs = build_inputs(tiny_processor, [Sample(RED, "what is this")])
    expected = generate(model, tiny_processor, inputs, 4)
    inputs["token_type_ids"] = inputs["input_ids"] * 0
    assert set(taken(model, inputs)) == {"input_ids", "attention_mask", "pixel_values"}
    assert (generate(model, tiny_processor, inputs, 4) == expected).all()


def test_a_video_needs_a_model_that_takes_videos(tiny_processor: Any) -> None:
    with pytest.raises(QuotaError, match="takes no videos; give frames of it as several pictures"):
        build_inputs(tiny_processor, [Sample((RED, RED), "what", video=True)])


def test_what_the_processor_refuses_is_said_in_one_line(tiny_processor: Any) -> None:
    tiny_processor.image_processor.size = None
    with pytest.raises(QuotaError, match="processor fails") as raised:
        build_inputs(tiny_processor, [Sample(RED, "what is this")])
    assert len(str(raised.value)) <= 300 and "\n" not in str(raised.value)
