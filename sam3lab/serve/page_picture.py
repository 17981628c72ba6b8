"""Images for the browser: a picture as it is kept and shown, and masks as small transparent PNGs in data URIs.

Nothing of this touches the disk: what the page shows travels inside its messages.
"""

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sam3lab import images
from sam3lab.draw import FILL, INK, is_light, shared, shrunk

SIDES = (768, 1280)  # pixels: least and greatest longer side of what is shown
CLEAR, INSIDE, OUTLINE, EDGE, DARK, WHITE = range(6)  # the colours of a mask's palette


@dataclass(frozen=True)
class Picture:
    """A photograph that was let in: its file, kept as it came, and what the browser shows of it.

    size: (H, W) of the photograph, upright. shown: a data URI of it, `shown_size` (h, w) large. title: what to call it.
    """

    data: bytes
    title: str
    size: tuple[int, int]
    shown: str
    shown_size: tuple[int, int]

    @property
    def nbytes(self) -> int:
        return len(self.data) + len(self.shown)


def picture(data: bytes, photograph: np.ndarray, title: str) -> Picture:
    """A Picture of an image file's bytes and what they decode to, uint8 [H,W,3]."""
    height, width = photograph.shape[:2]
    longer = max(height, width)
    scale = min(max(longer, SIDES[0]), SIDES[1]) / longer
    shown_size = max(1, round(height * scale)), max(1, round(width * scale))
    # BOX where it shrinks: quick on 40 megapixels, and good enough to look at.
    method = Image.Resampling.BOX if scale < 0.5 else Image.Resampling.BICUBIC
    shown = Image.fromarray(photograph).resize(shown_size[::-1], method)
    jpeg = data_uri("jpeg", images.jpeg(np.asarray(shown), quality=88))
    return Picture(data, title, (height, width), jpeg, shown_size)


def mask_uri(mask: np.ndarray, rgb: tuple[int, int, int], number: int, taken: list[tuple[int, int, int, int]]) -> str:
    """A mask bool [h,w] as the data URI of a transparent PNG of that size: filled, outlined, and with its number on it.

    taken: x0 y0 x1 y1 of the numbers of the masks that this one lies on, which it leaves open; its own is written
    elsewhere, if it can be, and added.
    """
    height, width = mask.shape
    layer = np.zeros(mask.shape, dtype=np.uint8)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    line = max(2, round((height * width) ** 0.5 / 220))
    if rows.size:
        window = (
            slice(max(0, rows[0] - 1), rows[-1] + 2),
            slice(max(0, columns[0] - 1), columns[-1] + 2),
        )
        inside, part = mask[window], layer[window]
        part[inside] = INSIDE
        part[inside & ~shrunk(inside, line)] = OUTLINE
        part[~inside & ~shrunk(~inside, 1)] = EDGE
    for x0, y0, x1, y1 in taken:
        layer[y0 : y1 + 1, x0 : x1 + 1] = CLEAR
    picture = Image.fromarray(layer)
    if rows.size:
        _badge(picture, mask, str(number), rgb, taken)
    picture = picture.convert("P")
    picture.putpalette([0, 0, 0, *rgb, *rgb, *INK, *INK, 255, 255, 255])
    alpha = bytes((0, round(255 * FILL), 255, 170, 255, 255))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", transparency=alpha, compress_level=4)
    return data_uri("png", buffer.getvalue())


def _badge(picture: Image.Image, mask: np.ndarray, text: str, rgb: tuple[int, int, int], taken: list) -> None:
    """Write the number at the mask's topmost place, or right or left of there, inside the picture."""
    top = int(np.flatnonzero(mask.any(axis=1))[0])
    centre = round(float(np.flatnonzero(mask[top]).mean()))
    pixels = max(14, round(max(picture.size) / 36))
    font = ImageFont.load_default(pixels)
    left, upper, right, lower = font.getbbox(text)
    margin = pixels // 4
    width, height = max(pixels, round(right - left)) + 2 * margin, round(lower - upper) + 2 * margin
    y = min(max(0, top - height // 2), max(0, picture.height - height))
    places = []
    for step in (0, 1, -1, 2, -2):
        x = min(max(0, centre - width // 2 + step * (width + 2)), max(0, picture.width - width))
        places.append((x, y, x + width, y + height))
    place = min(places, key=lambda each: sum(shared(each, other) for other in taken))
    taken.append(place)
    pen = ImageDraw.Draw(picture)
    pen.fontmode = "1"  # no half tones: the layer's values are places in a palette
    pen.rectangle(place, fill=OUTLINE, outline=DARK)
    x = place[0] + (width - round(right - left)) // 2 - left
    pen.text((x, y + margin - upper), text, fill=DARK if is_light(rgb) else WHITE, font=font)


def data_uri(kind: str, data: bytes) -> str:
    """A file's bytes as a data URI of the type image/`kind`."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
