"""Pictures, what their patches show, and the questions that are asked about them."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
import pytest

from quota.errors import QuotaError
from quota_lab.testbeds.vlm.labels import FIELDS, GRID, PATCH, THINGS, patch_labels
from quota_lab.testbeds.vlm.photos import Photos
from quota_lab.testbeds.vlm.pictures import FRAME, PICTURE, Box, Scene, Thing, draw
from quota_lab.testbeds.vlm.questions import TASKS, Question, ask
from quota_lab.testbeds.vlm.words import BACKGROUND, CELLS, COLORS, GROUP, HORIZONTAL, KINDS, LETTERS, SIGNS


def overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


@cache
def scenes(photos: Photos, count: int) -> list[Scene]:
    rng = Random(1)
    return [draw(photos, rng)[1] for _ in range(count)]


def boxes(scene: Scene) -> list[Box]:
    return [thing.box for thing in scene.things] + ([scene.sign.box] if scene.sign else [])


class TestPhotos:
    def test_parts_share_no_photograph(self, folder: Path) -> None:
        train, development = (Photos(folder, part).files for part in ("train", "development"))
        for kind, files in Photos(folder).files.items():
            assert sorted(train[kind] + development[kind]) == sorted(files)
            assert not set(train[kind]) & set(development[kind])

    def test_a_kind_without_photographs(self, tmp_path: Path) -> None:
        with pytest.raises(QuotaError, match="apple"):
            Photos(tmp_path)

    def test_every_kind_has_a_group(self) -> None:
        assert set(GROUP) == set(KINDS)


class TestDraw:
    def test_a_seed_is_a_picture(self, photos: Photos) -> None:
        (image, scene), (again, scene_again) = (draw(photos, Random(3)) for _ in range(2))
        assert image.size == (PICTURE, PICTURE)
        assert image.tobytes() == again.tobytes() and scene == scene_again

    def test_nothing_overlaps_or_leaves_the_picture(self, photos: Photos) -> None:
        for scene in scenes(photos, 60):
            found = boxes(scene)
            assert 2 <= len(scene.things) <= 6
            assert all(
                0 <= left < right <= PICTURE and 0 <= top < bottom <= PICTURE for left, top, right, bottom in found
            )
            assert not any(overlap(one, other) for index, one in enumerate(found) for other in found[:index])

    def test_places_are_what_boxes_say(self, photos: Photos) -> None:
        for scene in scenes(photos, 60):
            for one in scene.things:
                for other in scene.things:
                    if one.row < other.row:
                        assert one.box[3] <= other.box[1]
                    if one.column < other.column:
                        assert one.box[2] <= other.box[0]

    def test_frames_have_their_colour(self, photos: Photos) -> None:
        rng = Random(2)
        for _ in range(20):
            image, scene = draw(photos, rng)
            for thing in scene.things:
                pixel = image.getpixel((thing.box[0] + FRAME // 2, thing.box[1] + FRAME // 2))
                nearest = min(
                    COLORS, key=lambda name: sum(abs(a - b) for a, b in zip(COLORS[name], pixel, strict=True))
                )
                assert nearest == thing.color


class TestLabels:
    def test_naive(self, photos: Photos) -> None:
        """Pixel by pixel."""
        for scene in scenes(photos, 20):
            labels = patch_labels(scene).reshape(len(FIELDS), GRID, GRID)
            owner = np.full((PICTURE, PICTURE), -1)
            for index, (left, top, right, bottom) in enumerate(boxes(scene)):
                owner[top:bottom, left:right] = index
            for row in range(GRID):
                for column in range(GRID):
                    pixels = owner[row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH]
                    thing, color, letter, word, vertical, horizontal, own_row, own_column = labels[:, row, column]
                    assert (own_row, own_column) == (row, column)
                    owners = [index for index in range(len(boxes(scene))) if (pixels == index).mean() >= 0.3]
                    if not owners:
                        assert THINGS[thing] == BACKGROUND and color == letter == word == -1
                    elif owners[-1] < len(scene.things):
                        one = scene.things[owners[-1]]
                        expected = (one.kind, one.color, one.row, one.column)
                        assert (THINGS[thing], list(COLORS)[color], vertical, horizontal) == expected
                    else:
                        assert scene.sign and SIGNS[word] == scene.sign.word
                        assert letter == -1 or LETTERS[letter] in scene.sign.word.upper()

    def test_every_letter_is_on_some_patch(self, photos: Photos) -> None:
        for scene in scenes(photos, 30):
            if scene.sign:
                letters = {LETTERS[index] for index in patch_labels(scene)[2] if index >= 0}
                assert letters == set(scene.sign.word.upper())


def named(scene: Scene, text: str) -> list[Thing]:
    """The things that a text names, in its order."""
    words = text.replace("?", "").split()
    return sorted((thing for thing in scene.things if thing.kind in words), key=lambda thing: words.index(thing.kind))


class TestQuestions:
    def asked(self, photos: Photos, task: str, count: int = 120) -> list[tuple[Scene, Question]]:
        rng = Random(5)
        pairs = ((scene, ask(task, scene, rng)) for scene in scenes(photos, count))
        return [(scene, question) for scene, question in pairs if question]

    def test_no_answer_is_the_answer_to_everything(self, photos: Photos) -> None:
        for task in TASKS:
            answers = Counter(question.answer for _, question in self.asked(photos, task))
            assert answers.most_common(1)[0][1] <= 0.6 * answers.total()

    def test_existence(self, photos: Photos) -> None:
        for scene, question in self.asked(photos, "existence"):
            if "frame" not in question.text:
                assert (question.answer == "yes") == bool(named(scene, question.text))

    def test_relations(self, photos: Photos) -> None:
        for scene, question in self.asked(photos, "relations"):
            one, other = named(scene, question.text)
            apart = other.box[0] - one.box[0], other.box[1] - one.box[1]
            relations = {"left": apart[0] > 0, "right": apart[0] < 0, "above": apart[1] > 0, "below": apart[1] < 0,
                         "higher": apart[1] > 0, "lower": apart[1] < 0}  # fmt: skip
            [truth] = [truth for word, truth in relations.items() if word in question.text]
            assert question.answer == (("yes" if truth else "no") if "Which" not in question.text else
                                       (one if truth else other).kind)  # fmt: skip

    def test_choice(self, photos: Photos) -> None:
        for scene, question in self.asked(photos, "choice"):
            options = dict(part.split(". ") for part in question.text.replace(" B.", "|B.").replace(" C.", "|C.")
                           .replace(" D.", "|D.").partition("A. ")[2].join(("A. ", "")).split("|"))  # fmt: skip
            right = options[question.answer]
            known = {thing.kind for thing in scene.things} | {thing.color for thing in scene.things}
            known |= {thing.place for thing in scene.things} | ({scene.sign.word} if scene.sign else set())
            assert right in known

    def test_position(self, photos: Photos) -> None:
        for scene, question in self.asked(photos, "position"):
            [cell] = [cell for cell in CELLS if cell in f"{question.text} {question.answer}"]
            [thing] = [thing for thing in scene.things if thing.place == cell]
            assert thing.kind in f"{question.text} {question.answer}"
            assert cell.split()[1] == HORIZONTAL[thing.column]

    def test_reading(self, photos: Photos) -> None:
        for scene, question in self.asked(photos, "reading"):
            assert scene.sign and scene.sign.word.upper().find(question.answer.upper()) >= 0
