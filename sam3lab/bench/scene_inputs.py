"""What an accuracy case is fed: a stored split's scenes with their prompts, and beside it the truth they are scored by.

Its images are named "scenes/SPLIT" or, for the first N scenes of the split, "scenes/SPLIT:N".
"""

import io
import json
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from sam3lab import atomic
from sam3lab.bench.case import Case
from sam3lab.bench.files import write_json


@dataclass(frozen=True)
class SceneInputs:
    """Arrays for N image–prompt pairs of S scenes, scene by scene, each with the same number of prompts.

    pair int64 [N], the ids of the pairs in the ground truth; scene int64 [N], ascending from 0; ids int64 and mask bool
    [N,32]; sizes int64 [S,2], the images' height and width; bytes uint8 [·], the images' files one after the other, of
    which file s ends at ends[s], int64 [S].
    """

    pair: np.ndarray
    scene: np.ndarray
    ids: np.ndarray
    mask: np.ndarray
    sizes: np.ndarray
    bytes: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)

    def file(self, scene: int) -> bytes:
        """The file of a scene's image."""
        begin = self.ends[scene - 1] if scene else 0
        return self.bytes[begin : self.ends[scene]].tobytes()

    def save(self, path: Path) -> None:
        buffer = io.BytesIO()
        np.savez(buffer, **dict(zip((field.name for field in fields(self)), astuple(self), strict=True)))
        atomic.write(path, buffer.getbuffer())

    @classmethod
    def load(cls, path: Path) -> "SceneInputs":
        """What `save` wrote. Raises OSError, ValueError, TypeError or BadZipFile for what is absent or damaged."""
        with np.load(path) as file:
            return cls(**{name: file[name] for name in file.files})


def truth_path(run_dir: Path, case: Case) -> Path:
    """Where the ground truth of an accuracy case lies in a run: predictions/truth-SPLIT.json or truth-SPLIT-N.json."""
    split, scenes = case.split
    return run_dir / "predictions" / f"truth-{split}{f'-{scenes}' if scenes else ''}.json"


def build(case: Case, checkpoint: Path, truth: Path) -> SceneInputs:
    """The inputs of an accuracy case whose checkpoint lies in that directory; their ground truth goes to `truth`, in
    SA-Co's format (see bench.coco).

    Raises UserError for a split that is not stored or has fewer scenes, and for a prompt that does not fit.
    """
    from sam3lab.model.tokenizer import load_tokenizer

    split, scenes = case.split
    files, content = _split(split, scenes)
    pairs = content["images"]
    names = list(dict.fromkeys(pair["file_name"] for pair in pairs))
    sizes = {pair["file_name"]: (pair["height"], pair["width"]) for pair in pairs}
    ids, mask = load_tokenizer(checkpoint).encode([pair["text_input"] for pair in pairs])
    write_json(truth, content)
    return SceneInputs(
        pair=np.array([pair["id"] for pair in pairs]),
        scene=np.array([names.index(pair["file_name"]) for pair in pairs]),
        ids=ids,
        mask=mask,
        sizes=np.array([sizes[name] for name in names]),
        bytes=np.frombuffer(b"".join(files[name] for name in names), np.uint8),
        ends=np.cumsum([len(files[name]) for name in names]),
    )


def _split(name: str, scenes: int | None) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The image files of the first scenes of a stored split by name, and the ground truth of their pairs."""
    from sam3lab.bench.coco import by_prompt
    from sam3lab.errors import UserError
    from sam3lab.scenes import store

    stored = store.load_split(name, store.SCENES)
    if scenes is not None and scenes > len(stored):
        raise UserError(f"the split {name} has {len(stored)} scenes, not {scenes}; ask for that many at most")
    content = json.loads(store.verified(store.SCENES / f"{name}.json", store.SCENES))
    kept = {scene.image_id: scene.file for scene in stored[:scenes]}
    for key, owner in (("images", "id"), ("annotations", "image_id"), ("prompts", "image_id")):
        content[key] = [entry for entry in content[key] if entry[owner] in kept]
    return {image["file_name"]: kept[image["id"]] for image in content["images"]}, by_prompt(content)
