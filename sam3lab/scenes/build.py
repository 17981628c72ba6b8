"""`python -m sam3lab.scenes.build`: draw, render and store the test splits again (see `store` for the format)."""

import argparse
import hashlib
import io
import json
import zipfile
from pathlib import Path

import numpy as np

from sam3lab.scenes import grammar, prompts
from sam3lab.scenes.specification import SPLITS, stack
from sam3lab.scenes.store import SCENES, STORED, SUMS

SIDE = 252  # sam3-nano's native resolution
QUALITY = 82  # of WebP; 384 images take about 4 MB
CHUNK = 16  # scenes rendered at a time


def build(directory: Path = SCENES, sizes: dict[str, int] | None = None) -> None:
    """Write every stored split and SHA256SUMS into `directory`. sizes: scenes a split, if not the whole of it."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name in STORED:
        seeds = SPLITS[name][: (sizes or {}).get(name)]
        pictures, truth = split(seeds)
        truth["info"] = {"description": f"sam3lab scenes, {name}", "first_seed": seeds.start}
        written += [directory / f"{name}.zip", directory / f"{name}.json"]
        with zipfile.ZipFile(written[-2], "w") as archive:  # stored: WebP does not shrink any further
            for entry, picture in zip(truth["images"], pictures, strict=True):
                archive.writestr(zipfile.ZipInfo(entry["file_name"]), picture)  # dated 1980: no clock in the bytes
        written[-1].write_text(json.dumps(truth, separators=(",", ":")) + "\n")
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(written)]
    (directory / SUMS).write_text("".join(lines))


def split(seeds: range) -> tuple[list[bytes], dict]:
    """The images of these scenes as WebP files, and their ground truth as COCO JSON content."""
    pictures, truth = [], {"images": [], "annotations": [], "prompts": []}
    truth["categories"] = [{"id": i, "name": name} for i, name in enumerate(grammar.SHAPES, 1)]
    for start in range(0, len(seeds), CHUNK):
        chunk = seeds[start : start + CHUNK]
        drawn = [prompts.scene(seed) for seed in chunk]
        image, masks = _render([scene for scene, _ in drawn])
        for (scene, asked), picture, shown in zip(drawn, image, masks, strict=True):
            number = len(pictures) + 1
            pictures.append(_webp(picture))
            size = {"width": SIDE, "height": SIDE}
            truth["images"].append({"id": number, "file_name": f"{number:04}.webp", "seed": scene.seed, **size})
            _describe(truth, number, scene.attributes, shown, asked)
    return pictures, truth


def _describe(truth: dict, image_id: int, attributes: np.ndarray, masks: np.ndarray, asked: list) -> None:
    """Append the annotations and prompts of one scene; objects that are not present, with empty masks, are left out."""
    from pycocotools import mask

    present = [i for i in range(len(attributes)) if masks[i].any()]
    first = len(truth["annotations"]) + 1
    for number, i in enumerate(present, first):
        code = mask.encode(np.asfortranarray(masks[i], dtype=np.uint8))
        shape, colour, texture, size = attributes[i].tolist()
        truth["annotations"].append(
            {
                "id": number,
                "image_id": image_id,
                "category_id": shape + 1,
                "segmentation": {"size": code["size"], "counts": code["counts"].decode("ascii")},
                "bbox": mask.toBbox(code).tolist(),
                "area": int(mask.area(code)),
                "iscrowd": 0,
                "colour": grammar.COLOURS[colour],
                "texture": grammar.TEXTURES[texture],
                "size": grammar.SIZES[size],
            }
        )
    for prompt in asked:
        hits = grammar.matches(prompt, attributes[present])
        truth["prompts"].append(
            {
                "id": len(truth["prompts"]) + 1,
                "image_id": image_id,
                "text": grammar.text(prompt),
                "annotation_ids": (first + np.flatnonzero(hits)).tolist(),
            }
        )


def _render(scenes: list) -> tuple[np.ndarray, np.ndarray]:
    import torch

    from sam3lab.scenes.render import render

    rendered = render({name: torch.from_numpy(array) for name, array in stack(scenes).items()}, SIDE)
    return rendered.image.permute(0, 2, 3, 1).numpy(), rendered.masks.numpy()


def _webp(image: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", quality=QUALITY, method=6)
    return buffer.getvalue()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=SCENES)
    build(parser.parse_args().output)
