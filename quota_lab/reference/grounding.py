"""What a noun in a question refers to: the targets of a second auxiliary loss that is dropped after training.

Wherever a question names a thing ("the red circle"), the hidden state of the name's last token, a few layers into the
decoder, is asked what it found in the picture:

    count   how many such things there are (4 for more), also none
    row     the row (0..11) of its centre, if there is one only; else -1
    column  likewise
    color   the colour of a shape, if there is one only; else -1

Reading is taught likewise: the word "sign" refers to the sign, and while a sign is spelt out, each token is asked for
the row and column of the letter that it has to say next.
"""

from __future__ import annotations

import numpy as np
from transformers import PreTrainedTokenizerFast

from quota_lab.reference.labels import PATCH
from quota_lab.reference.pictures import Scene, Sign
from quota_lab.reference.words import COLORS, EMOJI, LETTERS, SHAPES

GROUND_FIELDS = ("count", "row", "column", "color")
MOST = 4


class Grounding:
    """Finds names in tokens and looks them up in a scene."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.names = {self._id(tokenizer, name): name for name in (*EMOJI, *SHAPES)}
        self.colors = {self._id(tokenizer, color): color for color in COLORS}
        self.letters = {tokenizer.convert_tokens_to_ids(letter): letter for letter in LETTERS}
        self.sign, self.last = self._id(tokenizer, "sign"), self._id(tokenizer, "last")
        self.color_index = {color: index for index, color in enumerate(COLORS)}

    @staticmethod
    def _id(tokenizer: PreTrainedTokenizerFast, word: str) -> int:
        return tokenizer.encode(f" {word}", add_special_tokens=False)[0]

    def __call__(self, text: np.ndarray, scene: Scene) -> np.ndarray:
        """text [4, L] as `Lessons` packs it -> labels [4, L] int16, -1 where nothing is named or it is an answer."""
        ids, targets, *_ = text
        grounds = np.full((len(GROUND_FIELDS), len(ids)), -1, np.int16)
        for at in np.flatnonzero(np.isin(ids, list(self.names))):
            if targets[at - 1] >= 0:
                continue  # said by the model, not asked
            name, color = self.names[int(ids[at])], self.colors.get(int(ids[at - 1]))
            found = [thing for thing in scene.things if thing.name == name and color in (None, thing.color)]
            grounds[0, at] = min(len(found), MOST)
            if len(found) == 1:
                x, y = found[0].center
                grounds[1, at], grounds[2, at] = int(y) // PATCH, int(x) // PATCH
                if found[0].color is not None:
                    grounds[3, at] = self.color_index[found[0].color]
        asked = (ids == self.sign) & (np.roll(targets, 1) < 0)
        grounds[0, asked] = int(scene.sign is not None)
        if scene.sign is not None:
            self._spell(text, scene.sign, grounds)
        return grounds

    def _spell(self, text: np.ndarray, sign: Sign, grounds: np.ndarray) -> None:
        """Where the letters stand that answers spell out: the whole word, or its first or last letter."""
        ids, targets, _, turns = text
        columns = [int(start + end) // 2 // PATCH for start, end in sign.letters]
        spelt = np.isin(targets, list(self.letters))
        for start in np.flatnonzero(spelt[1:] & ~spelt[:-1]) + 1:
            length = int(np.argmin(spelt[start:]))
            said = "".join(self.letters[int(token)] for token in targets[start : start + length])
            asked_last = self.last in ids[:start][turns[:start] == turns[start]]
            if said == sign.word:
                grounds[2, start : start + length] = columns
            elif length == 1:
                grounds[2, start] = columns[-1 if asked_last else 0]
            else:
                continue
            grounds[1, start : start + length] = (sign.box[1] + sign.box[3]) // 2 // PATCH
