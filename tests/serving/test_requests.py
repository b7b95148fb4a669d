"""Requests: what is wrong with one is said, and what is right means what it means in `quota run`."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image
from support.tiny_llava import VISUAL_TOKENS, processor
from transformers.image_utils import load_image

from quota.errors import QuotaError
from quota.samples import Sample
from quota.serving import requests
from quota.serving.lengths import Length
from quota.serving.requests import DEFAULT_TOKENS, MOST_PARTS, Served, inner_request, read_chat

SERVED = Served("small", "/models/small", {"eos_token_id": 2}, Length(processor(), 300))


def url(picture: Image.Image, form: str = "PNG", **options: Any) -> str:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def turned() -> Image.Image:
    """A picture that says how it is to be turned."""
    picture = Image.linear_gradient("L").resize((40, 30)).convert("RGB")
    picture.getexif()[0x0112] = 6
    return picture


def ask(content: Any = "w20 w21", **others: Any) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": content}], **others}).encode()


def picture(address: str) -> list[dict[str, Any]]:
    return [{"type": "image_url", "image_url": {"url": address}}, {"type": "text", "text": "w20"}]


def conversation(*contents: str) -> bytes:
    """Turns of a user who gets no answers."""
    return json.dumps({"messages": [{"role": "user", "content": content} for content in contents]}).encode()


WRONG = {
    "no JSON": (b"{", "not valid JSON"),
    "no object": (b"[]", "no JSON object"),
    "deep": (b"[" * 100_000, "nested too deeply"),
    "no UTF-8": (b'{"messages": "\xff"}', "not text in UTF-8"),
    "no messages": (b"{}", "'messages' is missing"),
    "empty": (b'{"messages": []}', "messages"),
    "role": (json.dumps({"messages": [{"role": "tool", "content": ""}]}).encode(), "role"),
    "unknown field": (ask(tools=[]), "unknown key 'tools'"),
    "field of a message": (json.dumps({"messages": [{"role": "user", "content": "", "name": "x"}]}).encode(), "name"),
    "kind of part": (ask([{"type": "video_url"}]), "video_url"),
    "other model": (ask(model="large"), "the model here is 'small', not 'large'"),
    "hot": (ask(temperature=3), "temperature"),
    "NaN": (ask(temperature=float("nan")), "temperature"),
    "text for a number": (ask(max_tokens="5"), "max_tokens"),
    "two answers": (ask(n=2), "'n'"),
    "penalty": (ask(frequency_penalty=0.5), "frequency_penalty"),
    "top_p without chance": (ask(top_p=0.5, temperature=1e-5), "top_p goes with a temperature above 0"),
    "usage of no stream": (ask(stream_options={"include_usage": True}), "stream_options goes with a stream"),
    "many messages": (conversation(*[""] * (MOST_PARTS + 1)), "have 1,001 parts, at most 1,000"),
    "many parts": (ask([{"type": "text", "text": ""}] * (MOST_PARTS + 1)), "have 1,001 parts, at most 1,000"),
    "long for its words": (ask("w20 " * 300), "the prompt has 302 tokens, the answer up to 1, and the model knows 300"),
    "long for its turns": (conversation(*[""] * 300), "the prompt has 301 tokens"),
    "long for its pictures": (ask(picture(url(turned())) * 18), "the prompt has 308 tokens"),
    "long for any tokens": (ask("w" * 3001), "the text has 3,001 characters, more than fit in the 300 tokens"),
    "top_p alone": (ask(top_p=0.5), "top_p goes with a temperature above 0"),
    "empty stop": (ask(stop=""), "stop must be"),
    "five stops": (ask(stop=list("abcde")), "stop must be"),
    "too long": (ask(max_tokens=299), "the model knows 300"),
    "a mark": (ask("w20 <image>"), "<image>, which stands for a picture"),
    "half a character": (ask("\ud800"), "half a character"),
    "a file": (ask(picture("/etc/passwd")), "no address is fetched"),
    "an address": (ask(picture("http://localhost/a.png")), "no address is fetched"),
    "not base64": (ask(picture("data:image/png;base64,???")), "not in base64"),
    "broken": (ask(picture("data:image/png;base64,aaaa")), "cannot read the image of the request"),
    "half a picture": (ask(picture(url(turned())[:-40])), "cannot read the image of the request"),
    "of another kind": (ask(picture(url(turned(), "PDF"))), "cannot read the image of the request"),
}


@pytest.mark.parametrize(("body", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_said_in_one_line(body: bytes, message: str) -> None:
    with pytest.raises(QuotaError) as raised:
        inner_request(read_chat(body, SERVED), SERVED)
    assert message in str(raised.value)


def test_a_picture_too_large_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "LARGEST_PICTURE", 1199)
    with pytest.raises(QuotaError, match="of the request has 1,200 pixels, at most 1,199 are read"):
        inner_request(read_chat(ask(picture(url(turned()))), SERVED), SERVED)


def test_pictures_of_a_request_have_a_limit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "LARGEST_REQUEST", 3000)
    inner_request(read_chat(ask(picture(url(turned())) * 2), SERVED), SERVED)
    with pytest.raises(QuotaError, match="of the request has 1,200 pixels, those before it leave 600"):
        inner_request(read_chat(ask(picture(url(turned())) * 3), SERVED), SERVED)


def test_a_picture_of_few_colours_stays_small() -> None:
    body = ask(picture(url(Image.new("1", (3000, 3000)))))
    assert len(inner_request(read_chat(body, SERVED), SERVED)) < 500_000


def test_a_text_without_end_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    tokenizer = SERVED.processor.tokenizer

    class Counting:
        def __call__(self, text: str, **options: Any) -> Any:
            read.append(len(text))
            return tokenizer(text, **options)

        def get_vocab(self) -> dict[str, int]:
            return {**tokenizer.get_vocab(), "a" * 100_000: 96}

    length = Length(Counting(), 300)
    with pytest.raises(QuotaError, match="more than fit"):
        length.check("w20 " * 8_000_000)
    assert not read
    length.check("w20 " * 300)
    # A token is long here, and the words are not: they are counted until it is sure.
    monkeypatch.setitem(length.__dict__, "_longest", 4000)
    with pytest.raises(QuotaError, match="the text has 1,000,000 characters, more than fit in the 300 tokens"):
        length.check("w20 " * 250_000)
    assert sum(read) < 200_000


def test_tokens_are_those_of_the_whole_prompt() -> None:
    shown = ask([*picture(url(turned())), *picture(url(turned()))], max_tokens=300 - 2 * (VISUAL_TOKENS + 1) - 2)
    assert inner_request(read_chat(shown, SERVED), SERVED)
    with pytest.raises(QuotaError, match="the prompt has 36 tokens, the answer up to 265, and the model knows 300"):
        inner_request(read_chat(shown.replace(b"264", b"265"), SERVED), SERVED)


def test_what_the_template_refuses_is_one_line() -> None:
    refusing = Length(processor(), 300)
    refusing.processor.chat_template = "{{ raise_exception('turns must alternate') }}"
    with pytest.raises(QuotaError, match="the model's template or processor refuses this: TemplateError: turns must"):
        inner_request(read_chat(ask(), SERVED), replace(SERVED, length=refusing))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF"])
def test_the_model_sees_the_pixels_that_quota_run_would_show_it(form: str, tmp_path: Any) -> None:
    given = turned()
    file = tmp_path / "picture"
    options = {"exif": given.getexif()} if form == "JPEG" else {}
    given.save(file, form, **options)
    body = ask(picture(url(given, form, **options)))
    inner = json.loads(inner_request(read_chat(body, SERVED), SERVED))
    shown = load_image(inner["messages"][0]["content"][0]["image_url"]["url"])
    [expected] = Sample(file, "").pictures()
    assert shown.mode == "RGB"
    assert shown.tobytes() == expected.tobytes()


def test_what_is_asked_for_is_what_the_server_inside_is_told() -> None:
    greedy = json.loads(inner_request(read_chat(ask(stream=False, temperature=0, user="me"), SERVED), SERVED))
    assert greedy["messages"] == [{"role": "user", "content": [{"type": "text", "text": "w20 w21"}]}]
    assert (greedy["model"], greedy["stream"], greedy["max_tokens"]) == ("/models/small", True, DEFAULT_TOKENS)
    assert json.loads(greedy["generation_config"]) == {"eos_token_id": 2, "do_sample": False}
    cold = json.loads(inner_request(read_chat(ask(temperature=1e-300), SERVED), SERVED))
    assert "temperature" not in cold and not json.loads(cold["generation_config"])["do_sample"]
    sampled = json.loads(inner_request(read_chat(ask(temperature=0.5, seed=3, max_tokens=7), SERVED), SERVED))
    assert (sampled["temperature"], sampled["top_p"], sampled["seed"], sampled["max_tokens"]) == (0.5, 1.0, 3, 7)
    assert json.loads(sampled["generation_config"])["do_sample"] is True


def test_an_answer_of_no_given_length_has_the_room_that_is_left() -> None:
    inner = json.loads(inner_request(read_chat(ask(" ".join(["w20"] * 200)), SERVED), SERVED))
    # The turns have a mark each.
    assert inner["max_tokens"] == 98
