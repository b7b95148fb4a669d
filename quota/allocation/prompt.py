"""The typical prompt: what budgets of time and of KV bytes are meant of.

It has the pictures of the calibration sample with V0 visual tokens, in their sizes, and a question as long as its own,
but noise in them and filler in it: what a prefill costs does not depend on what a picture shows. So it can be stored,
and asked again where the calibration set is not at hand, and nothing of that set is given away.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from PIL import Image
from transformers import PreTrainedModel

from quota.errors import QuotaError
from quota.models import family
from quota.prompts import build_inputs
from quota.samples import LARGEST_QUESTION, Sample

_FILLER = "what is this "
_LONGEST = 100_000


@dataclass(frozen=True)
class TypicalPrompt:
    """The measures of a question about pictures or a video."""

    pictures: tuple[tuple[int, int], ...]
    """Width and height of each, or of each frame of the video, in pixels."""
    characters: int
    """Of the question."""
    video: bool = False

    def __post_init__(self) -> None:
        """QuotaError for measures that no question has."""
        pixels = sum(width * height for width, height in self.pictures)
        if any(min(size) < 1 for size in self.pictures) or not 0 < pixels <= LARGEST_QUESTION:
            raise QuotaError(f"a typical prompt has pictures of 1 to {LARGEST_QUESTION:,} pixels together")
        if not 0 <= self.characters <= _LONGEST:
            raise QuotaError(f"a typical prompt has a question of at most {_LONGEST:,} characters")

    @classmethod
    def of(cls, sample: Sample) -> TypicalPrompt:
        """The measures of `sample`."""
        sizes = tuple(picture.size for picture in sample.pictures())
        return cls(sizes, min(len(sample.question), _LONGEST), sample.video)

    def sample(self) -> Sample:
        """A question with these measures, the same every time."""
        chance = random.Random(0)
        noise = [Image.frombytes("RGB", size, chance.randbytes(3 * size[0] * size[1])) for size in self.pictures]
        repeats = 1 + self.characters // len(_FILLER)
        return Sample(tuple(noise), (_FILLER * repeats)[: self.characters].strip(), video=self.video)


def typical_inputs(model: PreTrainedModel, processor: Any, prompt: TypicalPrompt, tokens: int) -> Any:
    """The arguments of `model`, on its device, for `prompt`. QuotaError if that has not V0 = `tokens` visual tokens."""
    inputs = build_inputs(processor, [prompt.sample()]).to(model.device)
    found = int(family(model).visual_mask(inputs["input_ids"]).sum())
    if found != tokens:
        raise QuotaError(
            f"the processor makes {found} visual tokens of the typical prompt, {tokens} were measured; take the "
            "processor files that the model was compressed with"
        )
    return inputs
