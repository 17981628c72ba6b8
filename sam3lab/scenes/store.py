"""The stored test sets: rendered once, since rendering is not the same bit for bit on every machine.

Per split, `<split>.zip` has the images (WebP) and `<split>.json` the ground truth in COCO's format: one annotation an
object, its mask in run lengths, and beside COCO's own lists `prompts`, each with its image and the annotations that
answer it. SHA256SUMS has the files' checksums, in the format of sha256sum.
"""

import hashlib
import io
import json
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from sam3lab import images
from sam3lab.errors import UserError
from sam3lab.paths import DATA

SCENES = DATA / "scenes"
STORED = ("test", "compositional")
SUMS = "SHA256SUMS"
REMEDY = "check it out again, or make it again by `python -m sam3lab.scenes.build`"


@dataclass(frozen=True)
class StoredPrompt:
    """A prompt of a scene: its text and, ascending, the places of the masks that answer it; none for a negative."""

    text: str
    answers: tuple[int, ...]


@dataclass(frozen=True)
class StoredScene:
    """A scene of a stored split. `annotations` are COCO's, one an object; `file` is the image as it is stored."""

    image_id: int
    file: bytes
    annotations: tuple[dict, ...]
    prompts: tuple[StoredPrompt, ...]

    @cached_property
    def image(self) -> np.ndarray:
        """uint8 [S,S,3], RGB."""
        return images.decode(self.file)

    @cached_property
    def masks(self) -> np.ndarray:
        """bool [n,S,S], in the order of the annotations."""
        from pycocotools import mask

        if not self.annotations:
            return np.zeros((0, *self.image.shape[:2]), dtype=bool)
        codes = [{**a["segmentation"], "counts": a["segmentation"]["counts"].encode()} for a in self.annotations]
        return np.ascontiguousarray(mask.decode(codes).transpose(2, 0, 1)).astype(bool)


def load_split(name: str, directory: Path = SCENES) -> list[StoredScene]:
    """The scenes of a stored split, "test" or "compositional", in order of image_id.

    Raises UserError for another name, and naming the file that is missing or is not what SHA256SUMS says.
    """
    if name not in STORED:
        raise UserError(f"no stored split {name!r}: there are {', '.join(STORED)}")
    archive, truth = (verified(directory / f"{name}.{suffix}", directory) for suffix in ("zip", "json"))
    content = json.loads(truth)
    with zipfile.ZipFile(io.BytesIO(archive)) as files:
        pictures = {entry["id"]: files.read(entry["file_name"]) for entry in content["images"]}
    objects: dict[int, list] = {number: [] for number in pictures}
    for annotation in content["annotations"]:
        objects[annotation["image_id"]].append(annotation)
    prompts: dict[int, list] = {number: [] for number in pictures}
    for prompt in content["prompts"]:
        places = {a["id"]: place for place, a in enumerate(objects[prompt["image_id"]])}
        answers = tuple(places[number] for number in prompt["annotation_ids"])
        prompts[prompt["image_id"]].append(StoredPrompt(prompt["text"], answers))
    return [StoredScene(n, pictures[n], tuple(objects[n]), tuple(prompts[n])) for n in sorted(pictures)]


def verified(path: Path, directory: Path) -> bytes:
    """The bytes of a stored file, which must be those that SHA256SUMS in `directory` promises; else UserError."""
    try:
        sums = dict(reversed(line.split("  ", 1)) for line in (directory / SUMS).read_text().splitlines())
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the scenes in {directory} ({error}): {REMEDY}") from error
    if hashlib.sha256(content).hexdigest() != sums.get(path.name):
        raise UserError(f"{path} is damaged (its SHA-256 is not the one in {SUMS}): {REMEDY}")
    return content
