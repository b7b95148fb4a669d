"""The words of the reference world: what its pictures can hold and what its questions can ask for.

Every name here is one token of the reference tokenizer (see `tokenizer.py`), which lets the trainer tie the
class of an image patch to the embedding of the word that names it. Plurals are regular on purpose: "cats" is
the token of "cat" followed by "s".
"""

from __future__ import annotations

# Name -> code point of its Fluent Emoji 3D picture (MIT, Microsoft), by category. Hard negatives for
# "is there a cat?" come from the same category.
CATEGORIES: dict[str, dict[str, str]] = {
    "animal": {
        "dog": "1f436", "cat": "1f431", "rabbit": "1f430", "bear": "1f43b", "tiger": "1f42f",
        "cow": "1f42e", "pig": "1f437", "frog": "1f438", "monkey": "1f435", "elephant": "1f418",
        "chicken": "1f414", "penguin": "1f427", "duck": "1f986", "owl": "1f989", "whale": "1f433",
        "turtle": "1f422", "crab": "1f980", "bee": "1f41d", "snail": "1f40c", "shark": "1f988",
    },
    "food": {
        "apple": "1f34e", "banana": "1f34c", "pear": "1f350", "lemon": "1f34b", "melon": "1f349",
        "carrot": "1f955", "pizza": "1f355", "burger": "1f354", "cookie": "1f36a", "cake": "1f370",
        "egg": "1f95a", "mushroom": "1f344", "donut": "1f369", "pumpkin": "1f383",
    },
    "vehicle": {
        "car": "1f697", "train": "1f686", "rocket": "1f680", "boat": "26f5", "bicycle": "1f6b2",
        "tractor": "1f69c", "airplane": "2708-fe0f", "truck": "1f69a", "helicopter": "1f681",
    },
    "thing": {
        "clock": "23f0", "key": "1f511", "book": "1f4d5", "guitar": "1f3b8", "umbrella": "2602-fe0f",
        "camera": "1f4f7", "hat": "1f3a9", "shoe": "1f45f", "chair": "1fa91", "bell": "1f514",
        "flower": "1f33b", "tree": "1f333", "house": "1f3e0", "drum": "1f941", "gift": "1f381",
        "balloon": "1f388", "crown": "1f451", "phone": "1f4f1", "ball": "26bd", "hammer": "1f528",
        "magnet": "1f9f2",
    },
}  # fmt: skip

EMOJI: dict[str, str] = {name: code for group in CATEGORIES.values() for name, code in group.items()}
CATEGORY: dict[str, str] = {name: category for category, group in CATEGORIES.items() for name in group}

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (216, 32, 36), "green": (34, 150, 56), "blue": (36, 72, 214), "yellow": (246, 218, 40),
    "purple": (138, 44, 172), "orange": (246, 136, 24), "white": (250, 250, 250), "black": (18, 18, 18),
    "gray": (128, 128, 128), "brown": (122, 72, 34), "teal": (20, 148, 148),
}  # fmt: skip

SHAPES = ("circle", "square", "triangle", "star", "diamond")

SCENES = ("beach", "forest", "desert", "city", "mountain", "sea", "space", "room")

# Three rows of three cells, in reading order.
CELLS = (
    "top left", "top", "top right",
    "left", "center", "right",
    "bottom left", "bottom", "bottom right",
)  # fmt: skip

NUMBERS = ("0", "1", "2", "3", "4")

LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")

_SIGNS = (
    "OPEN STOP EXIT SALE CAFE BANK TAXI PARK FOOD HOTEL PIZZA BUS MENU MILK BREAD WATER FIRE POST SHOP ZOO "
    "CLUB CITY HOME WORK GYM BAR TEA FISH SOUP CAKE WINE JUICE BOOKS TOYS GAMES MUSIC MOVIE RADIO NEWS LIVE "
    "NORTH SOUTH EAST WEST LEFT RIGHT SLOW WAIT WALK GO PULL PUSH HELP INFO KEEP QUIET DOOR GATE ROAD LANE "
    "HILL LAKE RIVER OCEAN SUNNY RAIN SNOW WIND CLOUD STORM GOLD IRON STEEL WOOD GLASS PAPER BRICK STONE "
    "ALPHA BRAVO DELTA HAPPY LUCKY MAGIC POWER ROYAL SUPER TIGER EAGLE HORSE QUEEN KING JAZZ ROCK DANCE FUEL "
)
SIGNS = tuple(_SIGNS.split())


def article(noun: str) -> str:
    """`noun` with its indefinite article: "a cat", "an owl"."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
