"""Detection-level parity over a whole split: does a backend find what the fp32 reference finds?

One limit for all precisions, since this is what a user sees of them. A detection is what scores at least CONFIDENCE.
Every detection of either side needs a partner on the other side, which may be any prediction that was kept (they score
over 0.05): one that slips under 0.5 by a hair has changed its score, and is judged by that. Couples are chosen within a
pair, greedily by box IoU plus mask IoU less the difference of scores, which tells duplicates of one object apart; a
partner's box IoU is at least BOX_IOU.

What must be kept is in parity.SPLIT. Of the masks' IoU it is the mean over couples, because the least is a matter of
size and not of agreement: one pixel of a mask of fewer than a hundred already takes it under 0.99. The least is reported
beside it.
"""

from pathlib import Path
from typing import Any

import numpy as np

from sam3lab.bench import coco
from sam3lab.bench.accuracy import CONFIDENCE
from sam3lab.bench.matching import BOX_IOU, Agreement, box_iou, couples


def measure(reference: Path, other: Path) -> dict[str, Any]:
    """The row "split" of parity, without its verdict, of two files of COCO results on the same pairs.

    Raises OSError or ValueError for a file that cannot be read.
    """
    return {"output": "split", **agreement(*map(coco.by_pair, (reference, other)))._asdict()}


def agreement(reference: dict[int, list[dict]], other: dict[int, list[dict]]) -> Agreement:
    """Compare COCO results by pair; expected and matched count the detections of both sides."""
    expected = matched = 0
    values = []
    for pair in sorted(reference.keys() | other.keys()):
        a, b = reference.get(pair, []), other.get(pair, [])
        score_a, score_b = (np.array([entry["score"] for entry in side]) for side in (a, b))
        certain_a, certain_b = score_a >= CONFIDENCE, score_b >= CONFIDENCE
        expected += int(certain_a.sum() + certain_b.sum())
        if not (a and b and (certain_a.any() or certain_b.any())):
            continue
        box, mask = box_iou(_corners(a), _corners(b)), _mask_iou(a, b)
        difference = np.abs(score_a[:, None] - score_b[None])
        for i, j in couples(np.where(box >= BOX_IOU, 1 + box + mask - difference, 0.0)):
            if certain_a[i] or certain_b[j]:
                matched += int(certain_a[i]) + int(certain_b[j])
                values.append((mask[i, j], box[i, j], difference[i, j]))
    if not values:
        return Agreement(expected, matched, *[float("nan")] * 4)
    mask, box, difference = np.array(values).T
    return Agreement(expected, matched, *map(float, (mask.min(), mask.mean(), box.min(), difference.max())))


def _corners(entries: list[dict]) -> np.ndarray:
    boxes = np.array([entry["bbox"] for entry in entries], dtype=np.float64)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def _mask_iou(a: list[dict], b: list[dict]) -> np.ndarray:
    """As coco.iou, but 1 for two empty masks: they agree."""
    empty_a, empty_b = (np.array([entry["area"] == 0 for entry in side]) for side in (a, b))
    found = coco.iou(*([entry["segmentation"] for entry in side] for side in (a, b)))
    return np.where(empty_a[:, None] & empty_b[None], 1.0, found)
