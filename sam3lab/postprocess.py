"""Raw outputs to what a user wants: scores, boxes in image pixels, masks at the image's size, COCO run lengths."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sam3lab.errors import UserError


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
    score_threshold: float = 0.3,
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
        probability = torch.from_numpy(np.require(mask, np.float32, ["C", "W"])).sigmoid()[None, None]
        probability = torch.nn.functional.interpolate(probability, size=(height, width), mode="bilinear")
        enlarged[row] = (probability[0, 0] > mask_threshold).numpy()
    return Detections(scores, np.clip(boxes * limits, 0, limits), enlarged)
