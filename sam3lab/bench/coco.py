"""Ground truth and predictions of image–prompt pairs as COCO files that any evaluator reads.

Ground truth is as in SA-Co's files (facebookresearch/sam3, scripts/eval/gold): a JSON object whose `images` holds an
entry a pair, {"id", "file_name", "text_input", "height", "width", "is_instance_exhaustive"}, its `annotations` one a
mask, {"id", "image_id", "category_id": 1, "segmentation", "bbox", "area", "iscrowd"}, and its `categories` the only
one. Predictions are COCO results: a list of {"image_id", "category_id": 1, "segmentation", "bbox", "area", "score"}.
image_id is the pair's id in both. Masks are compressed run lengths; bbox is x, y, width, height, and it and area are in
pixels (SA-Co's are fractions of the image's; nothing here reads either).
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sam3lab.errors import UserError
from sam3lab.postprocess import Detections

CATEGORY = {"id": 1, "name": "visual"}  # as SA-Co names it


@dataclass(frozen=True)
class Pair:
    """An image–prompt pair: its true masks, its predicted masks and their scores; masks are COCO's run lengths.

    file_name says which pairs share an image. size is the image's height and width.
    """

    id: int
    file_name: str
    prompt: str
    size: tuple[int, int]
    masks: list[dict] = field(default_factory=list)
    predicted: list[dict] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)


def by_prompt(scenes: dict[str, Any]) -> dict[str, Any]:
    """The ground truth of pairs from one of whole images (`scenes.store` describes it), JSON-ready: a pair for each of
    its `prompts`, whose `annotation_ids` say which of the image's masks answer it. A pair's id is its prompt's.
    """
    images = {image["id"]: image for image in scenes["images"]}
    masks = {annotation["id"]: annotation for annotation in scenes["annotations"]}
    truth = {"images": [], "annotations": [], "categories": [CATEGORY]}
    for prompt in scenes["prompts"]:
        image = {name: images[prompt["image_id"]][name] for name in ("file_name", "height", "width")}
        pair = {"id": prompt["id"], "text_input": prompt["text"], **image, "is_instance_exhaustive": 1}
        truth["images"].append(pair)
        for number in prompt["annotation_ids"]:
            mask = {name: masks[number][name] for name in ("segmentation", "bbox", "area", "iscrowd")}
            owner = {"id": len(truth["annotations"]) + 1, "image_id": prompt["id"], "category_id": CATEGORY["id"]}
            truth["annotations"].append(owner | mask)
    return truth


def predictions(pair_ids: Iterable[int], found: Iterable[Detections]) -> list[dict[str, Any]]:
    """COCO results, JSON-ready, of the detections of each pair."""
    couples = zip(pair_ids, found, strict=True)
    return [record for pair, detections in couples for record in detections.to_coco(int(pair), CATEGORY["id"])]


def by_pair(path: Path) -> dict[int, list[dict[str, Any]]]:
    """A file of COCO results, by image_id. Raises OSError or ValueError for one that cannot be read."""
    found: dict[int, list] = {}
    for entry in json.loads(path.read_text(encoding="utf-8")):
        found.setdefault(entry["image_id"], []).append(entry)
    return found


def iou(a: Sequence[dict], b: Sequence[dict]) -> np.ndarray:
    """Intersection over union [len(a),len(b)] of masks as run lengths; 0 where either is empty."""
    from pycocotools import mask

    return np.asarray(mask.iou(list(a), list(b), [0] * len(b))).reshape(len(a), len(b))


def read(truth: dict | Path | str, predicted: Sequence[dict] | Path | str) -> list[Pair]:
    """The pairs with what is true and what was predicted for each, in the ground truth's order.

    truth and predicted are files or their content; a truth with `prompts` is one of whole images, see `by_prompt`. Pairs
    whose is_instance_exhaustive is 0, and crowd annotations, which SA-Co has in such pairs only, are left out. Raises
    UserError for a file that cannot be read, an entry that lacks something, no pairs, an unknown pair, a score outside
    0..1, and a mask of another size than its image's.
    """
    truth, predicted = _content(truth), _content(predicted)
    if not isinstance(truth, dict) or not isinstance(predicted, list | tuple):
        raise UserError("the ground truth is a JSON object with images and annotations, predictions are a JSON list")
    pairs: dict[Any, Pair] = {}
    left_out = set()
    try:
        truth = by_prompt(truth) if "prompts" in truth else truth
        for image in truth["images"]:
            pair = Pair(image["id"], image["file_name"], image["text_input"], (image["height"], image["width"]))
            if pair.id in pairs or pair.id in left_out:
                raise UserError(f"the ground truth has two pairs with the id {pair.id}; give each one of its own")
            if image.get("is_instance_exhaustive", 1):
                pairs[pair.id] = pair
            else:
                left_out.add(pair.id)
        for entry in truth["annotations"]:
            if entry["image_id"] not in left_out and not entry.get("iscrowd", 0):
                pair = _pair(pairs, entry, "annotation")
                pair.masks.append(_mask(entry, pair))
        for entry in predicted:
            if entry["image_id"] not in left_out:
                pair = _pair(pairs, entry, "prediction")
                pair.predicted.append(_mask(entry, pair))
                pair.scores.append(_score(entry))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"an entry of the ground truth or the predictions lacks or garbles {error}") from error
    if not pairs:
        raise UserError("the ground truth has no pairs to score by; give a file whose images are not empty")
    return list(pairs.values())


def _content(source: Any) -> Any:
    if not isinstance(source, Path | str):
        return source
    try:
        return json.loads(Path(source).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{source} cannot be read as JSON: {error}; give a COCO file") from error


def _pair(pairs: dict[Any, Pair], entry: dict, kind: str) -> Pair:
    if entry["image_id"] not in pairs:
        raise UserError(f"a {kind} is for the pair {entry['image_id']!r}, which the ground truth does not list")
    return pairs[entry["image_id"]]


def _mask(entry: dict, pair: Pair) -> dict:
    code = entry["segmentation"]
    if not isinstance(code, dict) or not isinstance(code.get("counts"), str | bytes):
        raise UserError(f"a mask of the pair {pair.id} is not in COCO's compressed run lengths; convert polygons first")
    if tuple(code["size"]) != pair.size:
        raise UserError(f"a mask of the pair {pair.id} is {list(code['size'])} pixels, its image {list(pair.size)}")
    return code


def _score(entry: dict) -> float:
    score = float(entry["score"])
    if not (math.isfinite(score) and 0 <= score <= 1):
        raise UserError(f"a prediction for the pair {entry['image_id']} has the score {score}; scores are 0 to 1")
    return score
