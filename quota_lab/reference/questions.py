"""Questions about pictures of the reference world, in six tasks that mirror the standard benchmarks.

    existence   "Is there a cat in the picture?", half of the negatives hard       (as POPE)
    attributes  counts, colours and shapes                                         (MME)
    relations   left, right, above, below; which of two is higher                  (GQA)
    choice      four options, answered by a letter                                 (MMBench)
    position    where a thing is, what is at a place, what place it is             (SEED)
    reading     the word on the sign, its first or last letter                     (TextVQA)

A question is asked only where its answer is beyond doubt: a thing must be named uniquely, two things must be
clearly apart along the axis in question, a place in the grid must be clearly inside its cell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from quota_lab.reference.pictures import PICTURE, Scene, Thing
from quota_lab.reference.words import CATEGORY, CELLS, COLORS, EMOJI, NUMBERS, SCENES, SHAPES, SIGNS, article

APART = 18  # pixels between two centres before one is "left of" or "above" the other
INSIDE = 4  # pixels from the border of a cell before a thing is "in" it


@dataclass(frozen=True)
class Question:
    task: str
    text: str
    answer: str


Asker = Callable[[Scene, Random], Question | None]


def ask(task: str, scene: Scene, rng: Random) -> Question | None:
    """One question of `task` about `scene`, or None where the scene allows none of the kind drawn."""
    return rng.choice(ASKERS[task])(scene, rng)


def cell_of(thing: Thing) -> str | None:
    """The cell of the 3 x 3 grid that holds the centre of `thing`; None near a border."""
    side = PICTURE / 3
    x, y = thing.center
    if any(abs(value - border) < INSIDE for value in (x, y) for border in (side, 2 * side)):
        return None
    return CELLS[3 * int(y // side) + int(x // side)]


def _named(scene: Scene) -> Counter[str]:
    return Counter(thing.words for thing in scene.things)


def _unique(scene: Scene) -> list[Thing]:
    count = _named(scene)
    return [thing for thing in scene.things if count[thing.words] == 1]


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


def _existence(scene: Scene, rng: Random) -> Question | None:
    if rng.random() < 0.5 and scene.things:
        name, truth = rng.choice(scene.things).words, True
    else:
        name, truth = _absent(scene, rng), False
    noun = article(name)
    form = rng.choice(
        (
            f"Is there {noun} in the picture?",
            f"Is there {noun}?",
            f"Can you see {noun}?",
            f"Does the picture show {noun}?",
        )
    )
    return Question("existence", form, _yes(truth))


def _absent(scene: Scene, rng: Random) -> str:
    """The name of something that is not there; half the time a near miss of something that is."""
    present = _named(scene)
    while True:
        if scene.things and rng.random() < 0.5:
            name = _near_miss(rng.choice(scene.things), rng)
        elif rng.random() < 0.3:
            name = f"{rng.choice(list(COLORS))} {rng.choice(SHAPES)}"
        else:
            name = rng.choice(list(EMOJI))
        if name not in present:
            return name


def _near_miss(thing: Thing, rng: Random) -> str:
    if thing.color is None:
        return rng.choice([name for name in EMOJI if CATEGORY[name] == CATEGORY[thing.name]])
    if rng.random() < 0.5:
        return f"{thing.color} {rng.choice(SHAPES)}"
    return f"{rng.choice(list(COLORS))} {thing.name}"


def _count(scene: Scene, rng: Random) -> Question | None:
    present = _named(scene)
    if present and rng.random() < 0.88:
        levels = sorted(set(present.values()))
        level = rng.choice(levels)  # level first, so that "1" does not drown the rest
        name = rng.choice(sorted(name for name, count in present.items() if count == level))
    else:
        name = _absent(scene, rng)
    if present[name] > 4:
        return None
    form = rng.choice((f"How many {name}s are there?", f"How many {name}s can you see?", f"Count the {name}s."))
    return Question("attributes", form, NUMBERS[present[name]])


def _shapes(scene: Scene) -> list[Thing]:
    return [thing for thing in scene.things if thing.color is not None]


def _only(scene: Scene, key: Callable[[Thing], str | None]) -> list[Thing]:
    """The shapes that no other shape shares `key` with."""
    count = Counter(key(thing) for thing in _shapes(scene))
    return [thing for thing in _shapes(scene) if count[key(thing)] == 1]


def _color(scene: Scene, rng: Random) -> Question | None:
    shapes = _only(scene, lambda thing: thing.name)
    if not shapes:
        return None
    one = rng.choice(shapes)
    form = rng.choice((f"What color is the {one.name}?", f"What is the color of the {one.name}?"))
    return Question("attributes", form, str(one.color))


def _shape(scene: Scene, rng: Random) -> Question | None:
    shapes = _only(scene, lambda thing: thing.color)
    if not shapes:
        return None
    one = rng.choice(shapes)
    form = rng.choice((f"What is the {one.color} shape?", f"Which shape is {one.color}?"))
    return Question("attributes", form, one.name)


# Relation -> (axis, sign): the first thing's coordinate times the sign is the smaller one.
RELATIONS = {"to the left of": (0, 1), "to the right of": (0, -1), "above": (1, 1), "below": (1, -1)}
EXTREMES = {"further left": (0, 1), "further right": (0, -1), "higher": (1, 1), "lower": (1, -1)}


def _pair(scene: Scene, axis: int, rng: Random) -> tuple[Thing, Thing] | None:
    things = _unique(scene)
    pairs = [(one, other) for one in things for other in things if abs(one.center[axis] - other.center[axis]) >= APART]
    return rng.choice(pairs) if pairs else None


def _relation(scene: Scene, rng: Random) -> Question | None:
    words = rng.choice(list(RELATIONS))
    axis, sign = RELATIONS[words]
    pair = _pair(scene, axis, rng)
    if pair is None:
        return None
    one, other = pair
    truth = sign * (one.center[axis] - other.center[axis]) < 0
    return Question("relations", f"Is the {one.words} {words} the {other.words}?", _yes(truth))


def _extreme(scene: Scene, rng: Random) -> Question | None:
    words = rng.choice(list(EXTREMES))
    axis, sign = EXTREMES[words]
    pair = _pair(scene, axis, rng)
    if pair is None:
        return None
    one, other = pair
    winner = one if sign * (one.center[axis] - other.center[axis]) < 0 else other
    return Question("relations", f"Which is {words}, the {one.words} or the {other.words}?", winner.words)


def _options(stem: str, right: str, wrong: list[str], rng: Random) -> Question:
    options = [right, *rng.sample(sorted(set(wrong) - {right}), 3)]
    rng.shuffle(options)
    listed = " ".join(f"{letter}. {option}" for letter, option in zip("ABCD", options, strict=True))
    return Question("choice", f"{stem} {listed}", "ABCD"[options.index(right)])


def _choose_thing(scene: Scene, rng: Random) -> Question | None:
    if not scene.things:
        return None
    return _options(
        rng.choice(("Which of these is in the picture?", "What can you see?")),
        rng.choice(scene.things).words,
        [_absent(scene, rng) for _ in range(8)] + rng.sample([name for name in EMOJI if name not in _named(scene)], 4),
        rng,
    )


def _choose_color(scene: Scene, rng: Random) -> Question | None:
    shapes = _only(scene, lambda thing: thing.name)
    if not shapes:
        return None
    one = rng.choice(shapes)
    return _options(f"What color is the {one.name}?", str(one.color), list(COLORS), rng)


def _choose_place(scene: Scene, rng: Random) -> Question | None:
    return _options(rng.choice(("What place is this?", "What is in the background?")), scene.place, list(SCENES), rng)


def _choose_cell(scene: Scene, rng: Random) -> Question | None:
    things = [(thing, cell) for thing in _unique(scene) if (cell := cell_of(thing))]
    if not things:
        return None
    thing, cell = rng.choice(things)
    return _options(f"Where is the {thing.words}?", cell, list(CELLS), rng)


def _choose_sign(scene: Scene, rng: Random) -> Question | None:
    if scene.sign is None:
        return None
    return _options("What does the sign say?", scene.sign.word, list(SIGNS), rng)


def _where(scene: Scene, rng: Random) -> Question | None:
    things = [(thing, cell) for thing in _unique(scene) if (cell := cell_of(thing))]
    if not things:
        return None
    thing, cell = rng.choice(things)
    form = rng.choice((f"Where is the {thing.words}?", f"In which part of the picture is the {thing.words}?"))
    return Question("position", form, cell)


def _what_is_at(scene: Scene, rng: Random) -> Question | None:
    cells = [(thing, cell_of(thing)) for thing in scene.things]
    if any(cell is None for _, cell in cells):
        return None
    count = Counter(cell for _, cell in cells)
    single = [(thing, cell) for thing, cell in cells if count[cell] == 1]
    if not single:
        return None
    thing, cell = rng.choice(single)
    preposition = "in" if cell == "center" or " " in str(cell) else "at"
    return Question("position", f"What is {preposition} the {cell}?", thing.words)


def _place(scene: Scene, rng: Random) -> Question | None:
    form = rng.choice(("What place is this?", "What is in the background?", "Where was the picture taken?"))
    return Question("position", form, scene.place)


def _read(scene: Scene, rng: Random) -> Question | None:
    if scene.sign is None:
        return None
    form = rng.choice(("What does the sign say?", "What is written on the sign?", "Read the sign."))
    return Question("reading", form, scene.sign.word)


def _letter(scene: Scene, rng: Random) -> Question | None:
    if scene.sign is None:
        return None
    which, index = rng.choice((("first", 0), ("last", -1)))
    return Question("reading", f"What is the {which} letter on the sign?", scene.sign.word[index])


def describe(scene: Scene) -> Question:
    """A full description, in reading order. Only trained on: no task of the suite asks for it."""
    things = sorted(scene.things, key=lambda thing: (int(thing.center[1] * 3 // PICTURE), thing.center[0]))
    parts = [article(thing.words) for thing in things]
    if scene.sign is not None:
        parts.append(f"a sign that says {scene.sign.word}")
    listed = ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1] if parts else "nothing"
    return Question("description", "Describe the picture.", f"The {scene.place} with {listed}.")


ASKERS: dict[str, tuple[Asker, ...]] = {
    "existence": (_existence,),
    "attributes": (_count, _color, _shape),
    "relations": (_relation, _extreme),
    "choice": (_choose_thing, _choose_thing, _choose_color, _choose_place, _choose_cell, _choose_sign),
    "position": (_where, _what_is_at, _place),
    "reading": (_read, _read, _letter),
}
TASKS = tuple(ASKERS)
