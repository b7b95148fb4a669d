"""Plain text as token windows of equal length: what is calibrated on, and what perplexity is measured on."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quota.errors import QuotaError


def read_prose(path: Path) -> str:
    """The text of a file in UTF-8, every paragraph on one line. QuotaError if it cannot be read.

    Lines of books are broken at a width that means nothing; left in, every tenth token would be a line's end.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise QuotaError(f"cannot read {path}: {error}; give a plain text file") from error
    paragraphs = (" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text))
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def tokenize(tokenizer: Any, text: str) -> Tensor:
    """Token ids [T] of a text, without marks of beginning or end."""
    return torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def first_windows(tokens: Tensor, count: int, length: int) -> Tensor:
    """The first `count` windows of `length` tokens, one behind the other: [T] -> [count, length]."""
    _check_length(tokens, count, length)
    return tokens[: count * length].view(count, length)


def drawn_windows(tokens: Tensor, count: int, length: int, seed: int) -> Tensor:
    """`count` windows that do not overlap, drawn by `seed`: [T] -> [count, length]."""
    _check_length(tokens, count, length)
    chance = random.Random(seed)
    # Where the first one starts is drawn as well, else every seed would cut the text at the same places.
    start = chance.randrange(len(tokens) % length + 1)
    windows = tokens[start : start + len(tokens) // length * length].view(-1, length)
    return windows[chance.sample(range(len(windows)), count)]


def _check_length(tokens: Tensor, count: int, length: int) -> None:
    if count * length > len(tokens):
        raise QuotaError(
            f"the text has {len(tokens):,} tokens, but {count} windows of {length} need {count * length:,}; "
            "give a longer text or ask for fewer"
        )
