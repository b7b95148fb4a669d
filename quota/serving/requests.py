"""What a client may ask of a server, and what it is as transformers' server takes it.

transformers ignores some fields of a request, fails on others after it has begun to answer, opens files and addresses
that a picture's URL names, and samples only if the checkpoint says so. Here every field is checked before anything
runs, only those that have an effect are taken, and pictures come inside the request:

    {"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}

They are decoded as those of `quota run` are, so that the answers are the same. Whatever is wrong is a QuotaError, and
what is too large is refused before it costs much: texts before they become tokens, pictures before they become pixels.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from quota.errors import QuotaError, first_problem
from quota.files import parse_json
from quota.prompts import check_marks
from quota.samples import is_text, picture_in
from quota.serving.lengths import Length

LARGEST_PICTURE = 25_000_000
"""Pixels of a picture. Processors make it a hundredth of that anyway, and many clients may send one at a time."""
LARGEST_REQUEST = 2 * LARGEST_PICTURE
"""Pixels of all pictures of a request."""
MOST_PARTS = 1000
"""Of all messages of a request; one counts for at least one."""
DEFAULT_TOKENS = 256
"""Of an answer, unless a request says or the model knows fewer; as `quota run`."""
_COLDEST = 1e-4
"""A lower temperature is none: divided by it, what the likeliest token leads by is beyond any chance, or infinite."""


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
    include_usage: bool = False


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

    @property
    def usage(self) -> bool:
        """Whether a stream is to end with the number of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def sampled(self) -> bool:
        """Whether tokens are drawn."""
        return self.temperature is not None and self.temperature >= _COLDEST


@dataclass(frozen=True)
class Served:
    """The model of a server."""

    name: str
    """What clients call it."""
    folder: str
    """What transformers' server calls it."""
    generation: dict[str, Any]
    """Its own settings of generation, as JSON holds them."""
    length: Length
    template: dict[str, Any] = field(default_factory=dict)
    """What the server tells the chat template besides messages."""

    @property
    def processor(self) -> Any:
        return self.length.processor


def read_chat(body: bytes, served: Served) -> Chat:
    """The request in `body`. Raises QuotaError for one that cannot be answered as it is meant."""
    try:
        given = parse_json(body)
    except ValueError as error:
        raise QuotaError(f"the request is {error}") from None
    if not isinstance(given, dict):
        raise QuotaError("the request is no JSON object")
    _check_parts(given.get("messages"))
    try:
        chat = Chat.model_validate(given)
    except ValidationError as error:
        raise QuotaError(first_problem(error)) from None
    if chat.model not in (None, served.name, served.folder):
        raise QuotaError(f"the model here is {served.name!r}, not {chat.model!r}")
    if len(chat.stops) > 4 or not all(chat.stops):
        raise QuotaError("stop must be at most four strings, none of them empty")
    if chat.top_p not in (None, 1.0) and not chat.sampled:
        raise QuotaError("top_p goes with a temperature above 0; without one the likeliest token is taken")
    if chat.stream_options is not None and not chat.stream:
        raise QuotaError("stream_options goes with a stream; set stream, or leave it out")
    _check_texts([part.text for one in chat.messages for part in one.content if isinstance(part, _Text)], served)
    return chat


def inner_request(chat: Chat, served: Served) -> bytes:
    """The same for transformers' server, always streamed.

    Raises QuotaError for a picture that cannot be read, for what the model's template or processor refuses, and for a
    prompt that leaves no room for the answer.
    """
    seen, told = _messages(chat)
    body: dict[str, Any] = {
        "model": served.folder,
        "stream": True,
        "messages": told,
        "max_tokens": _longest(chat, _tokens(seen, served), served.length.context),
        "generation_config": json.dumps({**served.generation, "do_sample": chat.sampled}),
    }
    if chat.sampled:
        body |= {"temperature": chat.temperature, "top_p": 1.0 if chat.top_p is None else chat.top_p}
        if chat.seed is not None:
            body["seed"] = chat.seed
    return json.dumps(body).encode()


def _check_parts(messages: Any) -> None:
    """QuotaError for more messages and parts than anybody needs, before each of them is looked at."""
    if isinstance(messages, list):
        contents = [message.get("content") if isinstance(message, dict) else None for message in messages]
        parts = sum(max(1, len(content)) if isinstance(content, list) else 1 for content in contents)
        if parts > MOST_PARTS:
            raise QuotaError(f"the messages have {parts:,} parts, at most {MOST_PARTS:,} are read; put texts together")


def _check_texts(texts: list[str], served: Served) -> None:
    """QuotaError for texts that are none, hold marks of pictures, or are sure to be too long."""
    together = "".join(texts)
    if not is_text(together):
        raise QuotaError("a text of the request holds half a character; write it as UTF-8")
    served.length.check(together)
    for text in texts:
        check_marks(served.processor, text)


def _tokens(messages: list[dict[str, Any]], served: Served) -> int:
    """Tokens of the prompt, pictures and marks of turns included, by the call that transformers' server makes."""
    if not hasattr(served.processor, "tokenizer"):
        if any(part["type"] == "image" for one in messages for part in one["content"]):
            raise QuotaError(f"{served.name} reads no pictures; send text alone")
        messages = [{**one, "content": " ".join(part["text"] for part in one["content"])} for one in messages]
    try:
        made = served.processor.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            **served.template,
        )
    except Exception as error:
        # Templates and processors raise what they like: turns that do not alternate, more pictures than they take.
        raise QuotaError(f"the model's template or processor refuses this: {type(error).__name__}: {error}") from None
    return made["input_ids"].shape[1]


def _longest(chat: Chat, prompt: int, context: int) -> int:
    """Tokens that the answer may have. QuotaError if there is no room for so many."""
    left = context - prompt
    asked = chat.max_completion_tokens or chat.max_tokens or min(DEFAULT_TOKENS, max(left, 1))
    if asked > left:
        raise QuotaError(
            f"the prompt has {prompt:,} tokens, the answer up to {asked:,}, and the model knows {context:,}; "
            "ask for less"
        )
    return asked


def _messages(chat: Chat) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The messages as a processor takes them, with pictures, and as the server inside does, with files in base64."""
    seen: list[dict[str, Any]] = []
    told: list[dict[str, Any]] = []
    pixels = 0
    for message in chat.messages:
        both: tuple[list[Any], list[Any]] = [], []
        for part in message.content:
            if isinstance(part, _Text):
                parts = ({"type": "text", "text": part.text},) * 2
            else:
                picture = picture_in(
                    _file(part.image_url.url), "of the request", LARGEST_PICTURE, LARGEST_REQUEST - pixels
                )
                pixels += picture.width * picture.height
                url = {"url": _address(picture)}
                parts = {"type": "image", "image": picture}, {"type": "image_url", "image_url": url}
            for content, one in zip(both, parts, strict=True):
                content.append(one)
        for messages, content in zip((seen, told), both, strict=True):
            messages.append({"role": message.role, "content": content})
    return seen, told


def _file(url: str) -> bytes:
    """What a picture's address holds."""
    kind, comma, data = url.partition(",")
    if not kind.startswith("data:image/") or not kind.endswith(";base64") or not comma:
        raise QuotaError("a picture must be inside the request: data:image/png;base64,... (no address is fetched)")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise QuotaError("a picture is not in base64; encode its file again") from None


def _address(picture: Image.Image) -> str:
    """The picture as plain pixels: what transformers reads of them depends on nothing else."""
    file = io.BytesIO()
    # Pictures of few colours are small so, also while they wait for the model.
    picture.save(file, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
