"""Labelled masks on a photograph."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_erosion

from sam3lab.postprocess import Detections

# Okabe and Ito, "Color Universal Design" (2008), told apart under every common colour-vision deficiency; one a prompt.
FAMILIES = ("#D55E00", "#56B4E9", "#F0E442", "#009E73", "#CC79A7", "#0072B2", "#E69F00")
SHADES = (
    0.0,
    0.45,
    -0.35,
    0.22,
    -0.18,
)  # of a family, one an object: the share of white or, below 0, of black mixed in
FILL = 0.45  # opacity
INK = (26, 26, 26)
LEAST_TEXT = 8  # pixels: smaller letters cannot be read

Box = tuple[int, int, int, int]


def colour(prompt: int, index: int = 0) -> tuple[int, int, int]:
    """RGB of a prompt's object by their numbers, both from 0; they repeat after the last."""
    code, shade = FAMILIES[prompt % len(FAMILIES)], SHADES[index % len(SHADES)]
    base = np.array([int(code[i : i + 2], 16) for i in (1, 3, 5)])
    return tuple(np.rint(base + ((255 if shade > 0 else 0) - base) * abs(shade)).astype(int).tolist())


def is_light(rgb: tuple[int, int, int]) -> bool:
    """Whether dark text is easier to read on that colour than white."""
    return 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] > 120


def draw(image: np.ndarray, found: Sequence[tuple[str, Detections]]) -> np.ndarray:
    """The photograph uint8 [H,W,3] with the detections of each prompt on it: outline, translucent fill and a label with
    the prompt and the score. Without detections it is the photograph itself.
    """
    canvas = image.copy()
    objects = [
        (mask, box, score, prompt, colour(number, index))
        for number, (prompt, detections) in enumerate(found)
        for index, (mask, box, score) in enumerate(
            zip(detections.masks, detections.boxes, detections.scores, strict=True)
        )
    ]
    height, width = image.shape[:2]
    line = max(1, round((height * width) ** 0.5 / 250))
    objects.sort(key=lambda each: np.count_nonzero(each[0]), reverse=True)  # small ones stay visible on large ones
    for mask, _, _, _, rgb in objects:
        _paint(canvas, mask, rgb, line)

    picture = Image.fromarray(canvas)
    taken: list[Box] = []
    for _, box, score, prompt, rgb in sorted(objects, key=lambda each: each[2], reverse=True):
        _label(picture, " ".join(prompt.split()), f"{score:.2f}", box, rgb, taken)
    return np.asarray(picture)


def _paint(canvas: np.ndarray, mask: np.ndarray, rgb: tuple[int, int, int], line: int) -> None:
    """Fill and outline a mask in place; the outline is the colour inside the mask and a thin dark edge around it."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return
    edge = (line + 1) // 2
    window = (
        slice(max(0, rows[0] - edge), rows[-1] + 1 + edge),
        slice(max(0, columns[0] - edge), columns[-1] + 1 + edge),
    )
    inside, part = mask[window], canvas[window]
    filled = (1 - FILL) * part[inside] + FILL * np.array(rgb)
    part[inside] = np.rint(filled).astype(np.uint8)
    part[inside & ~shrunk(inside, line)] = rgb
    part[~inside & ~shrunk(~inside, edge)] = INK


def shrunk(mask: np.ndarray, pixels: int) -> np.ndarray:
    """The mask without what lies within that many steps (up, down, left, right; at least one) of its edge; the image's
    border is no edge.
    """
    return binary_erosion(mask, iterations=pixels, border_value=1)


def _label(picture: Image.Image, prompt: str, score: str, box: np.ndarray, rgb: tuple, taken: list[Box]) -> None:
    """Write prompt and score at a box, where they hide the labels that are `taken` least, and take that place too.

    Where half of it would lie on others it is left out: a heap of labels tells nothing.
    """
    fitted = _fit(prompt, score, picture.size)
    if fitted is None:
        return
    text, font, (width, height), origin = fitted
    x0, y0, x1, y1 = (round(float(value)) for value in box)
    corners = [(x0, y0 - height), (x0, y0), (x0, y1), (x0, y1 - height), (x1 - width, y0 - height), (x1, y0)]
    places = []
    for x, y in corners:
        x, y = min(max(0, x), picture.width - width), min(max(0, y), picture.height - height)
        places.append((x, y, x + width, y + height))
    hidden = [sum(shared(each, other) for other in taken) for each in places]
    if 2 * min(hidden) > width * height:
        return
    place = places[hidden.index(min(hidden))]
    taken.append(place)
    pen = ImageDraw.Draw(picture)
    pen.rectangle((place[0], place[1], place[2] - 1, place[3] - 1), fill=rgb, outline=INK)
    ink = INK if is_light(rgb) else (255, 255, 255)
    pen.text((place[0] + origin[0], place[1] + origin[1]), text, fill=ink, font=font)


def _fit(prompt: str, score: str, size: tuple[int, int]):
    """The text, font, size of the label and the text's place in it; smaller or shortened until it fits into an image of
    that width and a third of its height, None where not even the score does.
    """
    largest = max(12, round((size[0] * size[1]) ** 0.5 / 36))
    texts = [f"{prompt} {score}", *(f"{prompt[:length]}… {score}" for length in range(len(prompt) - 1, 0, -1)), score]
    # The whole text smaller, before a part of it.
    choices = [(texts[0], pixels) for pixels in range(largest, LEAST_TEXT, -1)]
    for text, pixels in [*choices, *((text, LEAST_TEXT) for text in texts)]:
        font = ImageFont.load_default(pixels)
        left, top, right, bottom = font.getbbox(text)
        margin = max(2, pixels // 5)
        width, height = round(right - left) + 2 * margin, round(bottom - top) + 2 * margin
        if width <= size[0] and 3 * height <= size[1]:
            return text, font, (width, height), (margin - left, margin - top)
    return None


def shared(a: Box, b: Box) -> int:
    """Area that two boxes share."""
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
