"""The grammar of the prompts, and what a prompt means in a scene.

    prompt := phrase { ", " phrase }
    phrase := [size] [texture] [colour] (shape | "shape")

A phrase matches the objects that have every attribute it names; "shape" stands for any shape. A prompt of several
phrases matches what any of them matches. Attributes are numbers everywhere but in the text: positions in `SHAPES`,
`COLOURS`, `TEXTURES` and `SIZES`, in this order, `ANY` where a phrase names none.
"""

from collections.abc import Iterable

import numpy as np

from sam3lab.errors import UserError

SHAPES = (
    "circle",
    "ellipse",
    "square",
    "rectangle",
    "triangle",
    "diamond",
    "pentagon",
    "star",
    "cross",
    "ring",
    "heart",
    "crescent",
)
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
TEXTURES = ("plain", "striped", "dotted")
SIZES = ("small", "large")
ATTRIBUTES = (SHAPES, COLOURS, TEXTURES, SIZES)
SHAPE, COLOUR, TEXTURE, SIZE = range(4)
ANY = -1
NOUN = "shape"  # any shape
SEPARATOR = ","
WORDS = (*SIZES, *TEXTURES, *COLOURS, *SHAPES, NOUN, SEPARATOR)

Phrase = tuple[int, int, int, int]  # shape, colour, texture, size
Prompt = tuple[Phrase, ...]


def held_out(shape, colour, texture):
    """Whether training never shows nor names this combination; for numbers or arrays.

    About one combination in ten, laid out like a Latin square: no two of them share two attributes more often than
    chance asks, so that every shape, colour and texture and every pair of them stays in training.
    """
    return (shape + 3 * colour + 4 * texture) % 10 == 0


HELD_OUT = frozenset(
    (shape, colour, texture)
    for shape in range(len(SHAPES))
    for colour in range(len(COLOURS))
    for texture in range(len(TEXTURES))
    if held_out(shape, colour, texture)
)


def asks_held_out(prompt: Prompt) -> bool:
    """Whether a phrase of the prompt names a held-out combination."""
    return any(phrase[:SIZE] in HELD_OUT for phrase in prompt)


def matches(prompt: Prompt, attributes: np.ndarray) -> np.ndarray:
    """Which objects the prompt asks for: bool [n], from their attributes, integers [n,4]."""
    wanted = np.asarray(prompt)[:, None]
    return ((wanted == ANY) | (wanted == attributes)).all(-1).any(0)


def words(phrase: Phrase) -> list[str]:
    """The phrase's words in the order of the grammar."""
    shape, colour, texture, size = phrase
    adjectives = ((SIZES, size), (TEXTURES, texture), (COLOURS, colour))
    return [table[i] for table, i in adjectives if i != ANY] + [NOUN if shape == ANY else SHAPES[shape]]


def text(prompt: Prompt) -> str:
    """The prompt as a user would type it."""
    return f"{SEPARATOR} ".join(" ".join(words(phrase)) for phrase in prompt)


def parse(prompt: str) -> Prompt:
    """The prompt of a text, the inverse of `text`. Raises UserError naming the phrase that is not of the grammar."""
    return tuple(_phrase(part.split(), prompt) for part in prompt.lower().split(SEPARATOR))


def _phrase(given: Iterable[str], prompt: str) -> Phrase:
    given, found = list(given), []
    noun = given.pop() if given else ""
    for table in (SIZES, TEXTURES, COLOURS):
        found.append(table.index(given.pop(0)) if given and given[0] in table else ANY)
    if given or noun not in (*SHAPES, NOUN):
        raise UserError(
            f"{prompt!r} is no prompt for the scenes: each phrase is [{'|'.join(SIZES)}] [{'|'.join(TEXTURES)}] "
            f"[{'|'.join(COLOURS)}] and one of {', '.join((*SHAPES, NOUN))}"
        )
    size, texture, colour = found
    return (ANY if noun == NOUN else SHAPES.index(noun), colour, texture, size)
