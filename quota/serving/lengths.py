"""Whether a text can be a prompt at all, found without making tokens of all of it.

Tokens of a text without end take minutes and gigabytes. A text with more characters than the longest tokens together is
refused unread; any other is counted piece by piece, and only as far as the model knows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from quota.errors import QuotaError

_PIECE = 1 << 16
"""Characters: long beside a token, so that little is lost where a word is cut."""


@dataclass(frozen=True)
class Length:
    """What a model knows."""

    processor: Any
    context: int
    """Positions of its decoder."""

    @property
    def tokenizer(self) -> Any:
        return getattr(self.processor, "tokenizer", self.processor)

    @cached_property
    def _longest(self) -> int:
        """Characters of the longest token."""
        return max(map(len, self.tokenizer.get_vocab()), default=1)

    def check(self, text: str) -> None:
        """QuotaError for a text that is sure to be longer than the model knows. Others may be too long as well."""
        too_long = len(text) > self.context * self._longest
        tokens = start = 0
        while not too_long and start < len(text):
            piece = self.tokenizer(text[start : start + _PIECE], add_special_tokens=False, verbose=False)
            # The word at the cut may have become more tokens than it is.
            tokens += max(0, len(piece["input_ids"]) - self._longest)
            too_long, start = tokens > self.context, start + _PIECE
        if too_long:
            raise QuotaError(
                f"the text has {len(text):,} characters, more than fit in the {self.context:,} tokens that the model "
                "knows; ask for less"
            )
