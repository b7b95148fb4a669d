"""When two answers are the same: equal after normalisation, the rule of the usual VQA benchmarks.

Normalised means: compatibility forms and case folded, punctuation gone (but not the point of 3.5), articles gone,
number words as digits, spaces single. An article that is the whole answer stays: "A" is a choice of four.
"""

from __future__ import annotations

import re
import unicodedata

ARTICLES = frozenset({"a", "an", "the"})
_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
)
NUMBER_WORDS = {word: str(value) for value, word in enumerate(_UNITS.split())}

# What leaves no gap behind: the comma of 1,000 and the apostrophe of "it's".
_JOINED = re.compile(r"(?<=\d),(?=\d{3}\b)|['\u2019]")
_PUNCTUATION = re.compile(r"(?<!\d)\.|\.(?!\d)|[^\w\s.]|_")


def normalize_answer(text: str) -> str:
    """The form in which answers are compared, e.g. "The two cats." -> "2 cats"."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = _PUNCTUATION.sub(" ", _JOINED.sub("", folded)).split()
    meaningful = [word for word in words if word not in ARTICLES]
    return " ".join(NUMBER_WORDS.get(word, word) for word in meaningful or words)


def matches(prediction: str, answer: str) -> bool:
    """Whether a prediction counts as the known answer."""
    return normalize_answer(prediction) == normalize_answer(answer)
