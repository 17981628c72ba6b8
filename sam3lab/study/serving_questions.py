"""What the services of the study are asked: scenes of the test split, with prompts whose objects are known."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from sam3lab.errors import UserError
from sam3lab.scenes import grammar, store
from sam3lab.scenes.grammar import ANY, COLOUR, SHAPE, SIZE, TEXTURE

IMAGES = 160  # different ones: more than are offered while a full queue is served
LISTED = 3  # things in a list
OVERLAP = 0.5  # IoU from which on a mask is that of an object


@dataclass(frozen=True)
class Question:
    """An image file, prompts for it, and the masks of the objects that they name, as run lengths at the scene's size."""

    file: bytes
    prompts: tuple[str, ...]
    objects: tuple[dict, ...]


def single(seed: int, side: int, count: int = IMAGES) -> list[Question]:
    """One image and one prompt each, which names something; no image and no prompt is there twice.

    side: the model's, in pixels; smaller images are enlarged to it, so that they cost a service what a photograph does.
    A larger count begins with the questions of a smaller one. UserError where there are not so many.
    """
    rng, seen, found = np.random.default_rng(seed), set(), []
    scenes = _scenes()
    for place in rng.permutation(len(scenes)):
        scene = scenes[place]
        named = [each for each in scene.prompts if each.answers and "," not in each.text and each.text not in seen]
        if named:
            chosen = named[int(rng.integers(len(named)))]
            seen.add(chosen.text)
            objects = tuple(scene.annotations[each]["segmentation"] for each in chosen.answers)
            found.append(Question(_file(scene, side), (chosen.text,), objects))
        if len(found) == count:
            return found
    raise UserError(f"{count} images with a prompt of their own were asked for, and the test split has {len(found)}")


def lists(seed: int, count: int) -> list[Question]:
    """Scenes as they are stored, each with LISTED prompts that name a colour and a shape in it."""
    rng, found = np.random.default_rng(seed), []
    scenes = _scenes()
    for place in rng.permutation(len(scenes)):
        scene = scenes[place]
        attributes = np.array([_attributes(each) for each in scene.annotations]).reshape(-1, 4)
        kinds = np.unique(attributes[:, [SHAPE, COLOUR]], axis=0)
        if len(kinds) < LISTED:
            continue
        chosen = kinds[rng.permutation(len(kinds))[:LISTED]]
        phrases = tuple((int(shape), int(colour), ANY, ANY) for shape, colour in chosen)
        objects = np.flatnonzero(grammar.matches(phrases, attributes))
        prompts = tuple(" ".join(grammar.words(phrase)) for phrase in phrases)
        found.append(Question(scene.file, prompts, tuple(scene.annotations[each]["segmentation"] for each in objects)))
        if len(found) == count:
            return found
    raise UserError(f"{count} scenes with {LISTED} kinds of things were asked for, and the test split has {len(found)}")


def judged(question: Question, instances: Sequence[dict]) -> dict[str, int]:
    """expected: the objects that the question names; found: those with a mask of their own among the answer's instances;
    extra: instances that are none of them. Only for images that were not enlarged.
    """
    from pycocotools import mask

    from sam3lab.bench.matching import couples

    found = 0
    if instances and question.objects:
        masks = [each["segmentation"] for each in instances]
        overlaps = np.asarray(mask.iou(masks, list(question.objects), [0] * len(question.objects)))
        found = len(couples(np.where(overlaps >= OVERLAP, overlaps, 0.0)))
    return {"expected": len(question.objects), "found": found, "extra": len(instances) - found}


@lru_cache(1)
def _scenes() -> list[store.StoredScene]:
    return store.load_split("test")


def _attributes(annotation: dict) -> list[int]:
    """As the grammar counts them; the category is the shape's place, from one."""
    found = {SHAPE: annotation["category_id"] - 1}
    tables = {
        COLOUR: ("colour", grammar.COLOURS),
        TEXTURE: ("texture", grammar.TEXTURES),
        SIZE: ("size", grammar.SIZES),
    }
    found |= {place: table.index(annotation[name]) for place, (name, table) in tables.items()}
    return [found[place] for place in range(4)]


def _file(scene: store.StoredScene, side: int) -> bytes:
    from PIL import Image

    height, width = scene.image.shape[:2]
    if side <= max(height, width):
        return scene.file
    buffer = io.BytesIO()
    scale = side / max(height, width)
    size = round(width * scale), round(height * scale)
    Image.fromarray(scene.image).resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
