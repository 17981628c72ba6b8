"""What every backend is fed: prepared once and kept, so that all get identical arrays and need no torch to make them."""

import hashlib
import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sam3lab import atomic
from sam3lab.bench.case import Case


@dataclass(frozen=True)
class Inputs:
    """Arrays for one call with B images, P prompts and N = B × P pairs, image by image.

    pixels uint8 [B,3,S,S]; ids int64 [P,32]; mask bool [P,32]; image_index, text_index int64 [N]; sizes int64 [B,2],
    the photographs' height and width; jpegs: B photographs as the bytes of JPEG files, of which `pixels` were made.
    """

    pixels: np.ndarray
    ids: np.ndarray
    mask: np.ndarray
    image_index: np.ndarray
    text_index: np.ndarray
    sizes: np.ndarray
    jpegs: tuple[bytes, ...]

    @property
    def digest(self) -> str:
        """12 hex digits of the SHA-256 of all of it."""
        whole = hashlib.sha256()
        for name, array in self._arrays():
            whole.update(f"{name} {array.dtype} {array.shape}".encode())
            whole.update(np.ascontiguousarray(array))
        return whole.hexdigest()[:12]

    def save(self, path: Path) -> None:
        buffer = io.BytesIO()
        np.savez(buffer, **dict(self._arrays()))
        atomic.write(path, buffer.getbuffer())

    @classmethod
    def load(cls, path: Path) -> "Inputs":
        """What `save` wrote. Raises OSError, ValueError, KeyError or BadZipFile for what is absent or damaged."""
        with np.load(path) as file:
            fields = {name: file[name] for name in file.files}
        jpegs = tuple(fields.pop(f"jpeg_{i}").tobytes() for i in range(len(fields["pixels"])))
        return cls(jpegs=jpegs, **fields)

    def _arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        for name in ("pixels", "ids", "mask", "image_index", "text_index", "sizes"):
            yield name, getattr(self, name)
        for i, data in enumerate(self.jpegs):
            yield f"jpeg_{i}", np.frombuffer(data, np.uint8)


def place(run_dir: Path, case: Case) -> Path:
    """Where a run keeps what a case is fed."""
    return run_dir / "inputs" / f"{case.inputs_id}.npz"


def keep(run_dir: Path, case: Case, checkpoint: Path) -> None:
    """The inputs on disk, with their ground truth if they have one; those of an earlier call are kept, so that all rounds
    have the same. Raises UserError as `build` and scene_inputs.build do.
    """
    from sam3lab.bench import scene_inputs

    path, truth = place(run_dir, case), None
    if case.mode == "accuracy":
        truth = scene_inputs.truth_path(run_dir, case)
    try:
        (Inputs if truth is None else scene_inputs.SceneInputs).load(path)
        if truth is None or truth.exists():
            return
    except (OSError, ValueError, TypeError, KeyError, zipfile.BadZipFile):
        pass
    made = build(case, checkpoint) if truth is None else scene_inputs.build(case, checkpoint, truth)
    made.save(path)


def build(case: Case, checkpoint: Path) -> Inputs:
    """The inputs of a case whose checkpoint lies in that directory.

    Raises UserError for an image that cannot be read and a prompt that does not fit.
    """
    from sam3lab import images
    from sam3lab.model.tokenizer import load_tokenizer

    ids, mask = load_tokenizer(checkpoint).encode(case.prompts)
    used = [case.images[i % len(case.images)] for i in range(case.batch)]
    files = {name: images.jpeg(images.load(name)) for name in dict.fromkeys(used)}
    # The pixels come from the JPEG and not from the original, so that the stages see what end_to_end sees.
    photographs = {name: images.decode(data) for name, data in files.items()}
    squares = {name: images.pixels(photograph, case.resolution) for name, photograph in photographs.items()}
    return Inputs(
        pixels=np.stack([squares[name] for name in used]),
        ids=ids,
        mask=mask,
        image_index=np.repeat(np.arange(case.batch), len(case.prompts)),
        text_index=np.tile(np.arange(len(case.prompts)), case.batch),
        sizes=np.array([photographs[name].shape[:2] for name in used]),
        jpegs=tuple(files[name] for name in used),
    )
