"""From a seed to what a scene holds: objects and their attributes, where they are, the light, and the background.

Numbers only, drawn by numpy from the seed in a fixed order, hence the same on every machine. Lengths are in units of
the image's side, angles in radians, colours linear from 0 to 1. Nothing here needs torch: worker processes draw
specifications while the device renders them.
"""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sam3lab.errors import UserError
from sam3lab.scenes.grammar import COLOURS, SHAPES, TEXTURES, held_out

MAX_OBJECTS = 12
# Seeds of each split. Training may take as many as it wants; the others are as large as their ranges.
SPLITS = {
    "train": range(0, 1 << 40),
    "validation": range(1 << 40, (1 << 40) + 256),
    "test": range(2 << 40, (2 << 40) + 256),
    "compositional": range(3 << 40, (3 << 40) + 128),
}
PHOTOGRAPHS = (
    "astronaut",
    "brick",
    "camera",
    "chelsea",
    "coffee",
    "grass",
    "gravel",
    "hubble_deep_field",
    "ihc",
    "motorcycle_left",
    "page",
    "rocket",
    "text",
)
RADII = ((0.072, 0.092), (0.135, 0.18))  # least and greatest radius of small and of large objects
# Hue in degrees, saturation and value of each colour, and how far they stray.
HSV = ((0, 0.88, 0.85), (26, 0.95, 0.95), (53, 0.9, 0.95), (125, 0.75, 0.62))
HSV += ((182, 0.85, 0.82), (222, 0.82, 0.85), (277, 0.68, 0.66), (330, 0.45, 0.98))
STRAY = (4, 0.07, 0.08)
# The columns of Scene.objects and Scene.setting.
OBJECT = (
    "x",
    "y",
    "radius",
    "angle",
    "red",
    "green",
    "blue",
    "red2",
    "green2",
    "blue2",
    "period",
    "phase",
    "slant",
    "shade",
    "shade_angle",
)
SETTING = (
    "crop_x",
    "crop_y",
    "crop",
    "mirror",
    "red",
    "green",
    "blue",
    "red2",
    "green2",
    "blue2",
    "angle",
    "noise",
    "blur",
    "brightness",
    "contrast",
    "warmth",
)


@dataclass(frozen=True)
class Scene:
    """One scene's specification.

    attributes: int64 [n,4], shape, colour, texture and size of its n objects, later ones in front of earlier ones.
    objects: float32 [n,len(OBJECT)]. photograph: index into PHOTOGRAPHS, or -1 for a gradient. setting: float32
    [len(SETTING)].
    """

    seed: int
    attributes: np.ndarray
    objects: np.ndarray
    photograph: int
    setting: np.ndarray


def split_of(seed: int) -> str:
    """The split that a seed belongs to. Raises UserError for a seed of none."""
    for name, seeds in SPLITS.items():
        if seed in seeds:
            return name
    raise UserError(f"the seed {seed} belongs to no split; training's are 0 to {SPLITS['train'].stop - 1}")


def draw(seed: int) -> tuple[Scene, np.random.Generator]:
    """The scene of a seed, and the generator as that leaves it, from which its prompts are drawn."""
    rng = np.random.default_rng(seed)
    compositional = split_of(seed) == "compositional"
    count = int(rng.integers(1 if compositional else 0, MAX_OBJECTS + 1))
    attributes = _attributes(rng, count, compositional)
    scene = Scene(
        seed=seed,
        attributes=attributes,
        objects=_objects(rng, attributes),
        photograph=int(rng.integers(len(PHOTOGRAPHS))) if rng.random() < 0.75 else -1,
        setting=_setting(rng),
    )
    return scene, rng


def _attributes(rng: np.random.Generator, count: int, compositional: bool) -> np.ndarray:
    """Attributes [count,4]: no combination held out, or in a compositional scene the foremost object's at least."""
    limits = (len(SHAPES), len(COLOURS), len(TEXTURES))
    found = rng.integers(limits, size=(count, 3))
    # a scene repeats itself now and then: several objects then answer to one prompt
    for i in range(1, count):
        source = int(rng.integers(i))
        kept = rng.random(3) < 0.3
        found[i, kept] = found[source, kept]
    while True:
        out = held_out(*found.T)
        if compositional and not out[-1]:
            found[-1] = rng.integers(limits)
        elif not compositional and out.any():
            found[out] = rng.integers(limits, size=(int(out.sum()), 3))
        else:
            return np.concatenate([found, (rng.random((count, 1)) < 0.4).astype(np.int64)], axis=1)


def _objects(rng: np.random.Generator, attributes: np.ndarray) -> np.ndarray:
    count = len(attributes)
    low, high = np.asarray(RADII)[attributes[:, 3]].T
    radius = low + (high - low) * rng.random(count)
    colour = _colours(rng, attributes[:, 1])
    # the second colour of a texture: the same hue, much lighter or much darker, whichever is seen better
    light = colour @ (0.3, 0.59, 0.11)
    darker = light + 0.3 * (rng.random(count) - 0.5) > 0.5
    second = np.where(darker[:, None], 0.22 * colour, 0.15 * colour + 0.83)
    columns = [
        _places(rng, radius),
        radius[:, None],
        rng.random((count, 1)) * 2 * np.pi,
        colour,
        second,
        0.034 + 0.008 * rng.random((count, 1)),  # period
        rng.random((count, 1)),
        rng.random((count, 1)) * 2 * np.pi,
        0.14 * rng.random((count, 1)),
        rng.random((count, 1)) * 2 * np.pi,
    ]
    return np.concatenate(columns, axis=1, dtype=np.float32)


def _colours(rng: np.random.Generator, index: np.ndarray) -> np.ndarray:
    hsv = np.asarray(HSV)[index] + np.asarray(STRAY) * (2 * rng.random((len(index), 3)) - 1)
    hsv = np.stack([hsv[:, 0] / 360 % 1, hsv[:, 1].clip(0, 1), hsv[:, 2].clip(0, 1)], axis=1)
    return np.array([colorsys.hsv_to_rgb(*row) for row in hsv.tolist()]).reshape(-1, 3)


def _places(rng: np.random.Generator, radius: np.ndarray) -> np.ndarray:
    """Centres [n,2]: objects may overlap, but the nearest to full separation of 12 tries is taken where all do much."""
    margin = 0.75 * radius[:, None, None]
    tries = margin + (1 - 2 * margin) * rng.random((len(radius), 12, 2))
    places = np.empty((len(radius), 2))
    for i, centres in enumerate(tries):
        if i:
            gaps = np.linalg.norm(centres[:, None] - places[:i], axis=-1) / (radius[i] + radius[:i])
            room = gaps.min(axis=1)
            enough = room > 0.7
            places[i] = centres[enough.argmax() if enough.any() else room.argmax()]
        else:
            places[i] = centres[0]
    return places


def _setting(rng: np.random.Generator) -> np.ndarray:
    crop = 0.25 + 0.45 * rng.random()
    ends = rng.random((2, 1)) * 0.8 + 0.1 + 0.25 * (rng.random((2, 3)) - 0.5)  # greyish, so that objects stand out
    values = [
        *(rng.random(2) * (1 - crop)),
        crop,
        np.sign(rng.random() - 0.5),
        *ends.clip(0, 1).ravel(),
        rng.random() * 2 * np.pi,
        0.05 * rng.random() ** 2,
        0.0045 * max(0.0, 2 * rng.random() - 1),  # half of the scenes are sharp
        0.12 * (rng.random() - 0.5),
        0.85 + 0.25 * rng.random(),
        0.08 * (rng.random() - 0.5),
    ]
    return np.array(values, dtype=np.float32)


def stack(scenes: Sequence[Scene]) -> dict[str, np.ndarray]:
    """The scenes as arrays for rendering, objects padded to 12.

    seed int64 [B]; attributes int64 [B,12,4], -1 in the padding; objects float32 [B,12,len(OBJECT)]; photograph int64
    [B]; setting float32 [B,len(SETTING)].
    """
    attributes = np.full((len(scenes), MAX_OBJECTS, 4), -1)
    objects = np.zeros((len(scenes), MAX_OBJECTS, len(OBJECT)), dtype=np.float32)
    for row, scene in enumerate(scenes):
        attributes[row, : len(scene.attributes)] = scene.attributes
        objects[row, : len(scene.objects)] = scene.objects
    return {
        "seed": np.array([scene.seed for scene in scenes]),
        "attributes": attributes,
        "objects": objects,
        "photograph": np.array([scene.photograph for scene in scenes]),
        "setting": np.stack([scene.setting for scene in scenes]),
    }
