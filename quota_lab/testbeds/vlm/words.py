"""The words of the testbed's pictures: kinds of things, colours, places and what signs say.

Every word here is one token of SmolLM2 with a space before it. So a patch can be pulled towards the embedding of the
word for what it shows, and an answer is one token, or two for a corner.
"""

from __future__ import annotations

# Kind -> folders of photographs. Kinds that the tower mixes up share a name (longsleeve and t-shirt, satsumas and
# orange) or are left out (dress and skirt, garlic and ginger, pear, zucchini, aubergine).
GROUPS: dict[str, dict[str, tuple[str, ...]]] = {
    "fruit": {
        "apple": ("apple",), "avocado": ("avocado",), "banana": ("banana",), "lemon": ("lemon",), "lime": ("lime",),
        "orange": ("orange", "satsumas"), "pineapple": ("pineapple",),
    },
    "vegetable": {
        "cabbage": ("cabbage",), "carrot": ("carrots",), "cucumber": ("cucumber",),
        "mushroom": ("mushroom",), "potato": ("potato",), "tomato": ("tomato",),
    },
    "other": {
        "milk": ("milk", "oat_milk", "soy_milk", "sour_milk"), "pants": ("trousers",),
        "shirt": ("t-shirt", "longsleeve", "polo_shirt"), "shoe": ("shoe",),
    },
}  # fmt: skip

KINDS: dict[str, tuple[str, ...]] = {kind: folders for group in GROUPS.values() for kind, folders in group.items()}
GROUP: dict[str, str] = {kind: name for name, group in GROUPS.items() for kind in group}
PLURAL = frozenset(("pants",))
MASS = frozenset(("milk",))

# Of the frame around a photograph and of the board of a sign.
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 30, 34), "green": (28, 146, 52), "blue": (30, 70, 214), "yellow": (248, 220, 36),
    "pink": (250, 130, 190), "purple": (120, 36, 160), "white": (250, 250, 250), "black": (14, 14, 14),
}  # fmt: skip
LIGHT = frozenset(("yellow", "pink", "white"))

VERTICAL = ("top", "bottom")
HORIZONTAL = ("left", "center", "right")
CELLS = tuple(f"{row} {column}" for row in VERTICAL for column in HORIZONTAL)

LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")

# Printed in capitals, answered in small letters.
_SIGNS = (
    "open stop exit sale bank park food bus menu fire post shop club city home work bar fish soup wine "
    "books games music radio news live north south east west slow wait walk help info road lake "
    "river ocean rain snow wind storm gold iron wood glass stone happy magic power king rock jazz cold sun "
    "moon star fast"
)
SIGNS = tuple(_SIGNS.split())

BACKGROUND, SIGN = "background", "sign"


def noun(kind: str) -> str:
    """`kind` with its indefinite article, if it takes one: "an apple", "milk", "pants"."""
    if kind in PLURAL or kind in MASS:
        return kind
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def be(kind: str) -> str:
    """The form of "to be" that goes with `kind`."""
    return "are" if kind in PLURAL else "is"
