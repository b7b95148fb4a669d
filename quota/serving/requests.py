"""What a client may ask of a server, and what it is as transformers' server takes it.

transformers ignores some fields of a request, fails on others after it has begun to answer, opens files and addresses
that a picture's URL names, and samples only if the checkpoint says so. Here every field is checked before anything
runs, only those that have an effect are taken, and pictures come inside the request:

    {"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}

They are decoded as those of `quota run` are, so that the answers are the same. Whatever is wrong is a QuotaError.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from quota.errors import QuotaError, first_problem
from quota.files import parse_json
from quota.prompts import check_marks
from quota.samples import is_text, picture_in

LARGEST_PICTURE = 25_000_000
"""Pixels of a picture. Processors make it a hundredth of that anyway, and many clients may send one at a time."""
DEFAULT_TOKENS = 256
"""Of an answer, unless a request says or the model knows fewer; as `quota run`."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Text(_Strict):
    type: Literal["text"]
    text: str


class _Url(_Strict):
    url: str
    detail: Literal["auto"] | None = None


class _Image(_Strict):
    type: Literal["image_url"]
    image_url: _Url


_Part = Annotated[_Text | _Image, Field(discriminator="type")]


class _Message(_Strict):
    role: Literal["system", "user", "assistant"]
    content: list[_Part]

    @field_validator("content", mode="before")
    @classmethod
    def _text_alone(cls, content: Any) -> Any:
        return [{"type": "text", "text": content}] if isinstance(content, str) else content


class _StreamOptions(_Strict):
    include_usage: bool = True


class Chat(_Strict):
    """A request for `/v1/chat/completions`. What has no effect is there with the value that asks for none."""

    model: str | None = None
    messages: list[_Message] = Field(min_length=1)
    stream: bool | None = False
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    stop: str | list[str] | None = None
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    presence_penalty: float | None = Field(default=None, ge=0, le=0)
    frequency_penalty: float | None = Field(default=None, ge=0, le=0)
    user: str | None = None

    @property
    def stops(self) -> list[str]:
        """Strings that end the answer."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())


@dataclass(frozen=True)
class Served:
    """The model of a server."""

    name: str
    """What clients call it."""
    folder: str
    """What transformers' server calls it."""
    processor: Any
    generation: dict[str, Any]
    """Its own settings of generation, as JSON holds them."""
    context: int
    """Positions that the decoder knows."""
    picture: int
    """Visual tokens of a typical picture; 0 if nobody has counted them."""


def read_chat(body: bytes, served: Served) -> Chat:
    """The request in `body`. Raises QuotaError for one that cannot be answered as it is meant."""
    try:
        given = parse_json(body)
    except ValueError as error:
        raise QuotaError(f"the request is {error}") from None
    if not isinstance(given, dict):
        raise QuotaError("the request is no JSON object")
    try:
        chat = Chat.model_validate(given)
    except ValidationError as error:
        raise QuotaError(first_problem(error)) from None
    if chat.model not in (None, served.name, served.folder):
        raise QuotaError(f"the model here is {served.name!r}, not {chat.model!r}")
    if len(chat.stops) > 4 or not all(chat.stops):
        raise QuotaError("stop must be at most four strings, none of them empty")
    if chat.top_p not in (None, 1.0) and not _sampled(chat):
        raise QuotaError("top_p goes with a temperature above 0; without one the likeliest token is taken")
    _longest(chat, served)
    return chat


def inner_request(chat: Chat, served: Served) -> bytes:
    """The same for transformers' server, always streamed. Raises QuotaError for a picture that cannot be read."""
    sampled = _sampled(chat)
    body: dict[str, Any] = {
        "model": served.folder,
        "stream": True,
        "messages": [{"role": one.role, "content": _content(one.content)} for one in chat.messages],
        "max_tokens": _longest(chat, served),
        "generation_config": json.dumps({**served.generation, "do_sample": sampled}),
    }
    if sampled:
        body |= {"temperature": chat.temperature, "top_p": 1.0 if chat.top_p is None else chat.top_p}
        if chat.seed is not None:
            body["seed"] = chat.seed
    return json.dumps(body).encode()


def _sampled(chat: Chat) -> bool:
    return chat.temperature not in (None, 0.0)


def _longest(chat: Chat, served: Served) -> int:
    """Tokens that the answer may have. QuotaError for texts that are none, and if there is no room for so many."""
    parts = [part for message in chat.messages for part in message.content]
    texts = [part.text for part in parts if isinstance(part, _Text)]
    for text in texts:
        if not is_text(text):
            raise QuotaError("a text of the request holds half a character; write it as UTF-8")
        check_marks(served.processor, text)
    tokenizer = getattr(served.processor, "tokenizer", served.processor)
    prompt = sum(len(tokenizer(text)["input_ids"]) for text in texts)
    prompt += served.picture * sum(isinstance(part, _Image) for part in parts)
    left = served.context - prompt
    asked = chat.max_completion_tokens or chat.max_tokens or min(DEFAULT_TOKENS, max(left, 1))
    if asked > left:
        raise QuotaError(
            f"the prompt has about {prompt} tokens, the answer up to {asked}, and the model knows {served.context}; "
            "ask for less"
        )
    return asked


def _content(content: list[_Part]) -> list[dict[str, Any]]:
    return [
        {"type": "text", "text": part.text}
        if isinstance(part, _Text)
        else {"type": "image_url", "image_url": {"url": _decoded(part.image_url.url)}}
        for part in content
    ]


def _decoded(url: str) -> str:
    """The picture as plain pixels: what transformers reads of them depends on nothing else."""
    kind, comma, data = url.partition(",")
    if not kind.startswith("data:image/") or not kind.endswith(";base64") or not comma:
        raise QuotaError("a picture must be inside the request: data:image/png;base64,... (no address is fetched)")
    try:
        raw = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise QuotaError("a picture is not in base64; encode its file again") from None
    pixels = io.BytesIO()
    picture_in(raw, "of the request", LARGEST_PICTURE).save(pixels, "BMP")
    return f"data:image/bmp;base64,{base64.b64encode(pixels.getvalue()).decode()}"
