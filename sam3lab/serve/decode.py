"""What users send, checked: an image's bytes to pixels, prompts to the text that the model gets."""

import io
import unicodedata
from collections.abc import Iterable

import numpy as np
from PIL import Image

from sam3lab import images
from sam3lab.errors import UserError
from sam3lab.serve import container

MAX_BYTES = 20_000_000
MAX_PIXELS = 40_000_000
MAX_SIDE = 32_768
MAX_PROMPTS = 16
MAX_CHARACTERS = 200

_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Besides Unicode's control characters, those that turn the direction in which the text around them is shown.
_DIRECTION = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def decode(data: bytes) -> np.ndarray:
    """A JPEG, PNG or WebP file's bytes as RGB, uint8 [H,W,3], upright, transparency laid on white, an animation's first
    frame: what `sam3lab.images.decode` gives. Raises UserError as `examine` and `pixels` do.
    """
    return pixels(examine(data))


def examine(data: bytes) -> container.Picture:
    """What the file says of itself; nothing is decoded, so that this is quick whatever was sent.

    Raises UserError for what is no JPEG, PNG or WebP file, has more than MAX_BYTES, MAX_PIXELS or pixels a side than
    MAX_SIDE, or is cut short.
    """
    if len(data) > MAX_BYTES:
        raise UserError(f"the image has {len(data)} bytes; send at most {MAX_BYTES // 10**6} MB")
    picture = container.read(data)
    width, height = picture.size
    if not width or not height:
        raise UserError("the image has no pixels; send another")
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise UserError(
            f"the image has {width} × {height} pixels; send at most {MAX_PIXELS // 10**6} million, {MAX_SIDE} a side"
        )
    return picture


def pixels(picture: container.Picture) -> np.ndarray:
    """Its pixels as `decode` gives them. Takes a second or two for the largest, and up to twenty bytes a pixel.

    Raises UserError for a file that is damaged or cut short.
    """
    try:
        with Image.open(io.BytesIO(picture.data), formats=[picture.format]) as image:
            if image.size != picture.size:
                raise ValueError("it gives two sizes")
            image.load()
            turn = _TURN.get(picture.orientation)
            return images.to_rgb(image if turn is None else image.transpose(turn))
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise UserError(f"the {picture.format} image is damaged or cut short; send the whole file") from error


def normalise_prompts(texts: Iterable[str]) -> tuple[str, ...]:
    """The prompts as the model gets them, each once: composed (Unicode's NFC, as CLIP's tokenizer does), white space
    trimmed and single.

    Raises UserError for none, for more than MAX_PROMPTS, and for one that is empty, longer than MAX_CHARACTERS or has
    control characters.
    """
    prompts: dict[str, None] = {}
    for number, text in enumerate(texts, 1):
        if number > MAX_PROMPTS:
            raise UserError(f"there are more than {MAX_PROMPTS} prompts; send at most {MAX_PROMPTS}")
        prompts[_prompt(text, f"prompt {number}")] = None
    if not prompts:
        raise UserError("there is no prompt; name at least one thing to find")
    return tuple(prompts)


def _prompt(text: str, label: str) -> str:
    # Composition can triple a text, so that what is far too long is refused before.
    if len(text) <= 4 * MAX_CHARACTERS:
        text = unicodedata.normalize("NFC", text)
        for character in text:
            control = unicodedata.category(character) in ("Cc", "Cs") and character not in "\t\n\r"
            if control or character in _DIRECTION:
                raise UserError(f"{label} has the control character U+{ord(character):04X}; leave it out")
        text = " ".join(text.split())
    if not text:
        raise UserError(f"{label} is empty; name a thing to find")
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"{label} has {len(text)} characters; use at most {MAX_CHARACTERS}")
    return text
