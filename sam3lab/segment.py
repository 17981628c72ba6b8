"""`sam3lab segment`: the objects that a prompt names, found in an image of the user's own."""

import argparse
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from sam3lab.backends import Artifacts
    from sam3lab.postprocess import Detections

_STUBS = {"BUFR", "GRIB", "HDF5", "WMF"}  # which Pillow names as formats that it saves, for others to fill in


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add = parser.add_argument
    add("image", metavar="IMAGE", help="an image file, or a bundled photograph by name, as astronaut")
    add("prompts", metavar="PROMPT", nargs="+", help="what to find; each prompt has colours of its own")
    add("--checkpoint", default="sam3-nano", help="name or directory (default: %(default)s)")
    add("--backend", default="pytorch", help="runtime (default: %(default)s)")
    add("--precision", default="fp32", help="default: %(default)s")
    add("--device", default="cpu", help="default: %(default)s")
    add("--resolution", type=int, help="side in pixels that the image is scaled to (default: the checkpoint's own)")
    # 0.5: above it, the SAM 3 paper counts a detection
    add("--threshold", type=float, default=0.5, help="least score of an object, 0 to 1 (default: %(default)s)")
    add("--mask-threshold", type=float, default=0.5, help="least probability of a mask's pixel (default: %(default)s)")
    add("-o", "--output", type=Path, help="the image with the masks on it (default: <image>-segmented.png, here)")
    add("--json", type=Path, help="masks, boxes and scores as COCO JSON, with run lengths")


@dataclass
class Segmentation:
    """What was found for each prompt, and the milliseconds (wall) that each step took, in order."""

    found: "list[tuple[str, Detections]]"
    milliseconds: dict[str, float] = field(default_factory=dict)


def segment(
    photograph: "np.ndarray",
    prompts: Sequence[str],
    backend: str,
    artifacts: "Artifacts",
    threshold: float = 0.5,
    mask_threshold: float = 0.5,
) -> Segmentation:
    """Find the objects of each prompt in a photograph uint8 [H,W,3], running a backend once, from nothing.

    Raises UserError for a backend that is unknown or cannot run here, for a prompt that does not fit, and as prepare,
    load and detections do.
    """
    import numpy as np

    from sam3lab import backends, images
    from sam3lab.bench.clock import now
    from sam3lab.errors import UserError
    from sam3lab.model.config import check_resolution
    from sam3lab.model.tokenizer import load_tokenizer
    from sam3lab.postprocess import at_image_size, check_thresholds, chosen

    kind = backends.get(backend)
    if reason := kind.unavailable(artifacts.device, artifacts.precision):
        raise UserError(f"the backend {backend} cannot run {artifacts.precision} on {artifacts.device}: {reason}")
    check_resolution(artifacts.resolution)
    check_thresholds(threshold, mask_threshold)
    result = Segmentation([])
    runner, begin = kind(), now()

    def lap(step: str) -> None:
        nonlocal begin
        result.milliseconds[step], begin = (now() - begin) / 1e6, now()

    ids, mask = load_tokenizer(artifacts.checkpoint).encode(prompts)
    pixels = images.pixels(photograph, artifacts.resolution)[None]
    index = np.zeros(len(prompts), dtype=np.int64), np.arange(len(prompts))
    lap("pre-process")
    artifacts = kind.prepare(artifacts)
    lap("prepare")
    runner.load(artifacts)
    lap("load")
    try:
        features = runner.image(runner.upload(pixels))
        runner.synchronize()
        lap("image")
        device_mask = runner.upload(mask)
        text = runner.text(runner.upload(ids), device_mask)
        runner.synchronize()
        lap("text")
        raw = runner.detect(features, text, device_mask, *map(runner.upload, index))
        runner.synchronize()
        lap("detect")
        parts = chosen(runner, raw, [threshold] * len(prompts))
    finally:
        runner.close()
    found = [at_image_size(*each, photograph.shape[:2], mask_threshold) for each in parts]
    lap("post-process")
    result.found = list(zip(prompts, found, strict=True))
    return result


def to_coco(result: Segmentation, file_name: str, size: tuple[int, int]) -> dict:
    """The result as a COCO file, JSON-ready: an entry of `images` for each prompt, with the prompt as its text_input."""
    from sam3lab.bench.coco import CATEGORY, predictions

    height, width = size
    images = [
        {"id": number, "file_name": file_name, "text_input": prompt, "height": height, "width": width}
        for number, (prompt, _) in enumerate(result.found, 1)
    ]
    records = predictions(range(1, len(images) + 1), [found for _, found in result.found])
    annotations = [{"id": number, "iscrowd": 0, **record} for number, record in enumerate(records, 1)]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [CATEGORY],
        "milliseconds": result.milliseconds,
    }


def run(args: argparse.Namespace) -> int:
    """Segment, write the files and print what was found and how long it took."""
    from PIL import Image

    from sam3lab import images
    from sam3lab.backends import Artifacts
    from sam3lab.draw import draw
    from sam3lab.model.checkpoint import image_size, is_random, resolve

    photograph = images.load(args.image)
    output = args.output or Path(f"{Path(args.image).stem}-segmented.png")
    known = Image.registered_extensions()  # which loads what Image.SAVE holds
    endings = [ending for ending, kind in known.items() if kind in Image.SAVE and kind not in _STUBS]
    _check_target(output, args.image, ".png", endings)
    if args.json:
        _check_target(args.json, args.image, ".json", [".json"])
    checkpoint = resolve(args.checkpoint)
    resolution = image_size(checkpoint) if args.resolution is None else args.resolution
    artifacts = Artifacts(checkpoint, resolution, args.precision, args.device)
    prompts = list(dict.fromkeys(args.prompts))
    result = segment(photograph, prompts, args.backend, artifacts, args.threshold, args.mask_threshold)

    Image.fromarray(draw(photograph, result.found)).save(output)
    if args.json:
        content = to_coco(result, args.image, photograph.shape[:2])
        settings = {name: getattr(args, name) for name in ("checkpoint", "backend", "precision", "device")}
        settings |= {"resolution": resolution, "threshold": args.threshold, "mask_threshold": args.mask_threshold}
        args.json.write_text(json.dumps(content | {"settings": settings}, indent=1) + "\n", encoding="utf-8")
    height, width = photograph.shape[:2]
    print(f"{args.image}, {width} × {height}: {args.checkpoint} at {resolution}², {args.backend} {args.precision}")
    if is_random(args.checkpoint):
        print(f"The weights of {args.checkpoint} are random: what it finds means nothing.")
    _report(result, args.threshold)
    print(f"written: {output}" + (f", {args.json}" if args.json else ""))
    return 0


def _report(result: Segmentation, threshold: float) -> None:
    column = max(len("prompt"), *(len(prompt) for prompt, _ in result.found))
    if any(len(found) for _, found in result.found):
        print(f"\n{'prompt':{column}}  score  {'x0':>7} {'y0':>7} {'x1':>7} {'y1':>7}  pixels")
    for prompt, found in result.found:
        for score, box, mask in zip(found.scores, found.boxes, found.masks, strict=True):
            places = " ".join(f"{value:7.1f}" for value in box)
            print(f"{prompt:{column}}  {score:5.2f}  {places}  {int(mask.sum())}")
        if not len(found):
            print(f"{prompt!r}: nothing scores over {threshold:g}")
    steps = ", ".join(f"{step} {milliseconds:.1f}" for step, milliseconds in result.milliseconds.items())
    print(f"\nms, one run without warm-up (`sam3lab measure` measures): {steps}")


def _check_target(path: Path, image: str, usual: str, suffixes: Collection[str]) -> None:
    """Refuse a file that could not be written, or that would overwrite the image, before anything slow is done."""
    from sam3lab.errors import UserError

    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file in it, as {path / f'{Path(image).stem}{usual}'}")
    if path.suffix.lower() not in suffixes:
        raise UserError(f"{path} ends in none of the endings that can be written; name it {path.with_suffix(usual)}")
    if not path.parent.is_dir():
        raise UserError(f"the folder of {path} does not exist; make it, or name another")
    if path.exists() and Path(image).exists() and path.samefile(image):
        raise UserError(f"{path} is the image itself; name another file to write")
