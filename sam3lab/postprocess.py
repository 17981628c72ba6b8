"""Raw outputs to what a user wants: scores, boxes in image pixels, masks at the image's size, COCO run lengths."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sam3lab.errors import UserError

if TYPE_CHECKING:
    from sam3lab.backends.base import Backend, RawOutputs

SCORE = 0.3  # transformers' own default


@dataclass(frozen=True)
class Detections:
    """The k objects found for one image and prompt, highest score first.

    scores float32 [k] in 0..1; boxes float32 [k, 4], x0 y0 x1 y1 in image pixels; masks bool [k, H, W].
    """

    scores: np.ndarray
    boxes: np.ndarray
    masks: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    def rle(self) -> list[dict]:
        """The masks as COCO's compressed run lengths: {"size": [H, W], "counts": str} each."""
        from pycocotools import mask

        # COCO counts down the columns, hence the Fortran order.
        codes = mask.encode(np.asfortranarray(self.masks.transpose(1, 2, 0), dtype=np.uint8))
        return [{"size": code["size"], "counts": code["counts"].decode("ascii")} for code in codes]

    def to_coco(self, image_id: int, category_id: int) -> list[dict]:
        """JSON-ready records in COCO's result format, with the mask's area in pixels; bbox is x, y, width, height."""
        corners = self.boxes.astype(np.float64)
        boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        areas = np.count_nonzero(self.masks, axis=(1, 2))
        return [
            {
                "image_id": image_id,
                "category_id": category_id,
                "segmentation": code,
                "area": int(area),
                "bbox": box.tolist(),
                "score": float(score),
            }
            for code, area, box, score in zip(self.rle(), areas, boxes, self.scores, strict=True)
        ]


def check_thresholds(score: float, mask: float) -> None:
    """Raises UserError for a threshold outside 0..1."""
    for name, threshold in (("score", score), ("mask", mask)):
        if not 0 <= threshold <= 1:
            raise UserError(f"the {name} threshold {threshold} is no probability; give a number from 0 to 1")


def detections(
    outputs: Mapping[str, np.ndarray],
    size: tuple[int, int] | Sequence[tuple[int, int]],
    score_threshold: float = SCORE,
    mask_threshold: float = 0.5,
) -> list[Detections]:
    """The detections of each of N image–prompt pairs.

    `outputs` is a RawOutputs of numpy arrays or a mapping with its fields: logits [N, Q], presence [N, 1], boxes
    [N, Q, 4] in 0..1, masks (logits) [N, Q, h, w]; `size` the image's (H, W), one for all pairs or one each.

    A query's score is sigmoid(logit) × sigmoid(presence) and must exceed `score_threshold`. Mask probabilities are
    enlarged bilinearly (align_corners=False) and must exceed `mask_threshold`. Both as in transformers'
    Sam3ImageProcessor.post_process_instance_segmentation; here boxes are also clipped to the image and the detections
    sorted. Raises UserError for a threshold outside 0..1.
    """
    import torch

    check_thresholds(score_threshold, mask_threshold)
    fields = outputs._asdict() if hasattr(outputs, "_asdict") else outputs
    logits, presence, boxes, masks = (
        torch.from_numpy(np.require(fields[name], np.float32, ["C", "W"]))
        for name in ("logits", "presence", "boxes", "masks")
    )
    scores = logits.sigmoid() * presence.sigmoid()

    found = []
    for pair, shape in enumerate(np.broadcast_to(size, (len(scores), 2)).tolist()):
        order = scores[pair].argsort(descending=True, stable=True)
        kept = order[scores[pair][order] > score_threshold]
        parts = (each[pair][kept].numpy() for each in (scores, boxes, masks))
        found.append(at_image_size(*parts, shape, mask_threshold))
    return found


def chosen(
    backend: "Backend", raw: "RawOutputs", floors: Sequence[float], most: int | None = None
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The queries of each image–prompt pair whose score (see `detections`) exceeds its floor, best first, `most` at most.

    raw: on the backend's device, of which nothing else leaves it: all masks together are some hundred times what is kept.
    It may have more pairs than there are floors; those are left out. Of each pair: scores float32 [k], boxes float32
    [k, 4] in 0..1, masks [k, h, w], logits as `Backend.fetch` gives them (where k is 0 for all, [0, 0, 0]). Raises
    RuntimeError where a score is no finite number.
    """
    logits, presence, boxes = (each[: len(floors)] for each in backend.download((raw.logits, raw.presence, raw.boxes)))
    scores = _sigmoid(logits) * _sigmoid(presence)
    if not np.isfinite(scores).all():
        raise RuntimeError("its scores are not finite numbers")
    kept = []
    for row, floor in zip(scores, floors, strict=True):
        order = np.argsort(-row, kind="stable")
        kept.append(order[row[order] > floor][:most])
    parts = [(raw.masks, (pair, int(query))) for pair, queries in enumerate(kept) for query in queries]
    masks = backend.fetch(backend.gather(parts)) if parts else np.empty((0, 0, 0), np.float16)
    ends = np.cumsum([len(queries) for queries in kept])
    return [
        (scores[pair][queries], boxes[pair][queries], masks[end - len(queries) : end])
        for pair, (queries, end) in enumerate(zip(kept, ends, strict=True))
    ]


def at_image_size(
    scores: np.ndarray, boxes: np.ndarray, masks: np.ndarray, size: tuple[int, int], mask_threshold: float = 0.5
) -> Detections:
    """What was chosen of one pair, with its masks enlarged and boxes in pixels, as `detections` does both.

    scores float32 [k], highest first; boxes float32 [k, 4] in 0..1; masks float [k, h, w], logits; size the image's (H, W).
    """
    import torch

    height, width = size
    limits = np.array([width, height, width, height], dtype=np.float32)
    enlarged = np.empty((len(scores), height, width), dtype=bool)
    # One at a time: float probabilities of every query at the image's size would fill gigabytes.
    for row, mask in enumerate(masks):
        # PyTorch makes float32 of float16 some twenty times as fast as NumPy does
        probability = torch.from_numpy(np.require(mask, None, ["C", "W"])).float().sigmoid()[None, None]
        probability = torch.nn.functional.interpolate(probability, size=(height, width), mode="bilinear")
        enlarged[row] = (probability[0, 0] > mask_threshold).numpy()
    return Detections(scores, np.clip(boxes * limits, 0, limits), enlarged)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # exp of a great number is infinite, and its inverse zero, as it should be
        return 1 / (1 + np.exp(-logits, dtype=np.float32))
