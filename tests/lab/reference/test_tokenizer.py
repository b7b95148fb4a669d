"""The tokenizer and the chat template."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlavaProcessor

from quota_lab import reference
from quota_lab.reference import tokenizer as t
from quota_lab.reference.pictures import draw


@pytest.fixture(scope="module")
def processor() -> LlavaProcessor:
    return t.build_processor(t.build_tokenizer())


def test_it_is_built_the_same_each_time(processor: LlavaProcessor) -> None:
    assert t.build_tokenizer().get_vocab() == processor.tokenizer.get_vocab()


def test_special_tokens_have_the_numbers_that_the_trainer_uses(processor: LlavaProcessor) -> None:
    assert processor.tokenizer.convert_tokens_to_ids(list(t.SPECIAL)) == [
        t.PAD,
        t.BOS,
        t.EOS,
        t.IMAGE,
        t.USER,
        t.ASSISTANT,
    ]
    assert len(processor.tokenizer) <= t.VOCABULARY


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="<>"), max_size=40))
def test_any_text_comes_back(processor: LlavaProcessor, text: str) -> None:
    ids = processor.tokenizer.encode(text, add_special_tokens=False)
    assert processor.tokenizer.decode(ids) == text


def test_signs_are_read_letter_by_letter(processor: LlavaProcessor) -> None:
    assert processor.tokenizer.tokenize(" STOP") == ["Ġ", "S", "T", "O", "P"]


def test_plurals_are_the_word_and_an_s(processor: LlavaProcessor) -> None:
    assert processor.tokenizer.tokenize(" elephants") == ["Ġelephant", "s"]


def test_a_conversation_reads_as_it_was_trained(processor: LlavaProcessor) -> None:
    turns = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is there a cat?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
        {"role": "user", "content": "Where is the cat?"},
    ]
    text = processor.apply_chat_template(turns, add_generation_prompt=True)
    assert text == "<s><image><user> Is there a cat?<assistant> yes</s><user> Where is the cat?<assistant>"


def test_contents_read_the_same_in_every_form(processor: LlavaProcessor) -> None:
    picture, text = {"type": "image"}, {"type": "text", "text": " Is there a cat? "}
    read = {
        "<user> Is there a cat?": (" Is there a cat? ", [text]),
        "<image><user> Is there a cat?": ([picture, text], [text, picture]),
        "<image><image><user> Is there a cat? Is there a cat?": ([picture, text, text, picture],),
        "<user> ": ("",),
        "<user>": ([],),
    }
    for expected, contents in read.items():
        for content in contents:
            assert processor.apply_chat_template([{"role": "user", "content": content}]) == f"<s>{expected}"


def test_the_shipped_template_is_that_of_the_code() -> None:
    assert (reference.model_path() / "chat_template.jinja").read_text() == t.CHAT_TEMPLATE


def test_a_picture_becomes_144_tokens(processor: LlavaProcessor) -> None:
    image, _ = draw(Random(0))
    ids = processor(images=[image], text=["<s><image><user> Hi"], return_tensors="pt")["input_ids"]
    assert int((ids == t.IMAGE).sum()) == 144
