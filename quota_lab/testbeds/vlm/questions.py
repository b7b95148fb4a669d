"""Questions about pictures of the testbed, in the six tasks of the reference suite.

    existence   "Is there an apple in the picture?"; frames too; half of the negatives of a kind that is shown
    attributes  colours of frames and signs, and what a frame of a colour holds
    relations   left, right, above, below; which of two is higher or further left
    choice      four options, answered by a letter
    position    where a thing is, what is at a place
    reading     the word on the sign, its first or last letter

A question is asked only where its answer is beyond doubt: what it names must be named uniquely.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from quota_lab.testbeds.vlm.pictures import Scene, Thing
from quota_lab.testbeds.vlm.words import CELLS, COLORS, GROUP, KINDS, SIGNS, be, noun


@dataclass(frozen=True)
class Question:
    task: str
    text: str
    answer: str


Asker = Callable[[Scene, Random], Question | None]


def ask(task: str, scene: Scene, rng: Random) -> Question | None:
    """One question of `task` about `scene`, or None where the scene allows none of the kind drawn."""
    return rng.choice(ASKERS[task])(scene, rng)


def unique(scene: Scene) -> list[Thing]:
    """The things whose kind is shown once."""
    count = Counter(thing.kind for thing in scene.things)
    return [thing for thing in scene.things if count[thing.kind] == 1]


def _framed_alone(scene: Scene) -> list[Thing]:
    """The things whose colour of frame is theirs alone; a board of that colour would confuse too."""
    count = Counter(thing.color for thing in scene.things)
    board = None if scene.sign is None else scene.sign.color
    return [thing for thing in scene.things if count[thing.color] == 1 and thing.color != board]


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


def _absent(scene: Scene, rng: Random) -> str:
    """A kind that is not there, half the time of the group of one that is."""
    shown = {thing.kind for thing in scene.things}
    pool = [kind for kind in KINDS if kind not in shown]
    if rng.random() < 0.5:
        group = GROUP[rng.choice(scene.things).kind]
        pool = [kind for kind in pool if GROUP[kind] == group] or pool
    return rng.choice(pool)


def _exists(scene: Scene, rng: Random) -> Question | None:
    truth = rng.random() < 0.5
    kind = rng.choice(scene.things).kind if truth else _absent(scene, rng)
    verb = be(kind).capitalize()
    form = rng.choice(
        (
            f"{verb} there {noun(kind)} in the picture?",
            f"{verb} there {noun(kind)}?",
            f"Can you see {noun(kind)}?",
            f"Does the picture show {noun(kind)}?",
        )
    )
    return Question("existence", form, _yes(truth))


def _frame_exists(scene: Scene, rng: Random) -> Question | None:
    frames = {thing.color for thing in scene.things}
    board = set() if scene.sign is None else {scene.sign.color}
    truth = rng.random() < 0.5
    color = rng.choice(sorted(frames) if truth else [color for color in COLORS if color not in frames | board])
    return Question("existence", f"Is there a {color} frame in the picture?", _yes(truth))


def _frame(scene: Scene, rng: Random) -> Question | None:
    things = unique(scene)
    if not things:
        return None
    one = rng.choice(things)
    form = rng.choice(("What color is the frame of the {}?", "What is the color of the frame around the {}?"))
    return Question("attributes", form.format(one.kind), one.color)


def _board(scene: Scene, rng: Random) -> Question | None:
    if scene.sign is None:
        return None
    form = rng.choice(("What color is the sign?", "What is the color of the sign?"))
    return Question("attributes", form, scene.sign.color)


def _framed(scene: Scene, rng: Random) -> Question | None:
    things = _framed_alone(scene)
    if not things:
        return None
    one = rng.choice(things)
    form = rng.choice(("What is in the {} frame?", "What does the {} frame show?"))
    return Question("attributes", form.format(one.color), one.kind)


# Relation -> (axis, sign): the first thing's row or column times the sign is the smaller one.
RELATIONS = {
    "to the left of": ("column", 1),
    "to the right of": ("column", -1),
    "above": ("row", 1),
    "below": ("row", -1),
}
EXTREMES = {"further left": ("column", 1), "further right": ("column", -1), "higher": ("row", 1), "lower": ("row", -1)}


def _pair(scene: Scene, axis: str, rng: Random) -> tuple[Thing, Thing] | None:
    things = unique(scene)
    pairs = [(one, other) for one in things for other in things if getattr(one, axis) != getattr(other, axis)]
    return rng.choice(pairs) if pairs else None


def _relation(scene: Scene, rng: Random) -> Question | None:
    words = rng.choice(list(RELATIONS))
    axis, sign = RELATIONS[words]
    pair = _pair(scene, axis, rng)
    if pair is None:
        return None
    one, other = pair
    truth = sign * (getattr(one, axis) - getattr(other, axis)) < 0
    return Question("relations", f"{be(one.kind).capitalize()} the {one.kind} {words} the {other.kind}?", _yes(truth))


def _extreme(scene: Scene, rng: Random) -> Question | None:
    words = rng.choice(list(EXTREMES))
    axis, sign = EXTREMES[words]
    pair = _pair(scene, axis, rng)
    if pair is None:
        return None
    one, other = pair
    winner = one if sign * (getattr(one, axis) - getattr(other, axis)) < 0 else other
    return Question("relations", f"Which is {words}, the {one.kind} or the {other.kind}?", winner.kind)


def _options(stem: str, right: str, wrong: list[str], rng: Random) -> Question:
    options = [right, *rng.sample(sorted(set(wrong) - {right}), 3)]
    rng.shuffle(options)
    listed = " ".join(f"{letter}. {option}" for letter, option in zip("ABCD", options, strict=True))
    return Question("choice", f"{stem} {listed}", "ABCD"[options.index(right)])


def _choose_thing(scene: Scene, rng: Random) -> Question | None:
    shown = {thing.kind for thing in scene.things}
    stem = rng.choice(("Which of these is in the picture?", "What can you see?"))
    return _options(stem, rng.choice(sorted(shown)), [kind for kind in KINDS if kind not in shown], rng)


def _choose_color(scene: Scene, rng: Random) -> Question | None:
    asked = _frame(scene, rng)
    return asked and _options(asked.text, asked.answer, list(COLORS), rng)


def _choose_cell(scene: Scene, rng: Random) -> Question | None:
    asked = _where(scene, rng)
    return asked and _options(asked.text, asked.answer, list(CELLS), rng)


def _choose_sign(scene: Scene, rng: Random) -> Question | None:
    asked = _read(scene, rng)
    return asked and _options(asked.text, asked.answer, list(SIGNS), rng)


def _where(scene: Scene, rng: Random) -> Question | None:
    things = unique(scene)
    if not things:
        return None
    one = rng.choice(things)
    form = rng.choice(("Where {} the {}?", "In which part of the picture {} the {}?"))
    return Question("position", form.format(be(one.kind), one.kind), one.place)


def _what_is_at(scene: Scene, rng: Random) -> Question | None:
    one = rng.choice(scene.things)
    form = rng.choice(("What is at the {}?", "What does the photo at the {} show?"))
    return Question("position", form.format(one.place), one.kind)


def _read(scene: Scene, rng: Random) -> Question | None:
    if scene.sign is None:
        return None
    form = rng.choice(("What does the sign say?", "What is written on the sign?", "Read the sign."))
    return Question("reading", form, scene.sign.word)


def _letter(scene: Scene, rng: Random) -> Question | None:
    if scene.sign is None:
        return None
    which, index = rng.choice((("first", 0), ("last", -1)))
    return Question("reading", f"What is the {which} letter on the sign?", scene.sign.word[index].upper())


ASKERS: dict[str, tuple[Asker, ...]] = {
    "existence": (_exists, _exists, _exists, _frame_exists),
    "attributes": (_frame, _frame, _board, _framed),
    "relations": (_relation, _extreme),
    "choice": (_choose_thing, _choose_color, _choose_cell, _choose_sign),
    "position": (_where, _what_is_at),
    "reading": (_read, _read, _letter),
}
TASKS = tuple(ASKERS)
