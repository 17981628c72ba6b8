"""Images to try the page with: rendered scenes, which sam3-nano was trained on, and bundled photographs."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial

import numpy as np
from PIL import Image

from sam3lab import images
from sam3lab.serve.page_picture import data_uri

# Image of the stored test split: what to ask of it.
SCENES = {
    15: ("star", "ring", "orange square"),
    18: ("star", "striped shape", "crescent"),
    78: ("yellow shape", "circle", "blue ellipse"),
    65: ("red rectangle", "ellipse", "green star"),
}
PHOTOGRAPHS = {
    "astronaut": ("person", "flag"),
    "chelsea": ("cat",),
    "coffee": ("cup", "spoon"),
    "motorcycle_left": ("motorcycle", "wheel"),
}
THUMBNAIL = 120  # pixels, the side of a square


@dataclass(frozen=True)
class Example:
    """An image file, made when it is first asked for, and prompts that suit it."""

    title: str
    prompts: tuple[str, ...]
    read: Callable[[], bytes]

    @cached_property
    def data(self) -> bytes:
        """The bytes of a WebP or JPEG file."""
        return self.read()

    @cached_property
    def thumbnail(self) -> str:
        """A data URI of the middle of it, THUMBNAIL × THUMBNAIL."""
        image = Image.fromarray(images.decode(self.data))
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        small = image.resize((THUMBNAIL, THUMBNAIL), box=(left, top, left + side, top + side), reducing_gap=2)
        return data_uri("jpeg", images.jpeg(np.asarray(small), quality=85))


def examples() -> list[Example]:
    """The examples that are on this disk."""
    scenes = [Example(f"scene {number}", prompts, partial(_scene, number)) for number, prompts in SCENES.items()]
    there = set(images.names())
    photographs = [
        Example(name.removesuffix("_left"), prompts, partial(_photograph, name))
        for name, prompts in PHOTOGRAPHS.items()
        if name in there
    ]
    return scenes + photographs


@lru_cache(maxsize=1)
def _scenes() -> dict[int, bytes]:
    from sam3lab.scenes.store import load_split

    return {scene.image_id: scene.file for scene in load_split("test") if scene.image_id in SCENES}


def _scene(number: int) -> bytes:
    return _scenes()[number]


def _photograph(name: str) -> bytes:
    return images.jpeg(np.asarray(images.load(name)))
