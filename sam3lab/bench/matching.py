"""Do two sets of raw outputs detect the same objects? Boxes and masks of one pair's queries, matched by overlap."""

from typing import NamedTuple

import numpy as np

SCORE_THRESHOLD = 0.3
BOX_IOU = 0.5


class Agreement(NamedTuple):
    """expected: detections that must have a partner; matched: those that have one. The rest is over matched couples,
    NaN without any: least and mean mask IoU, least box IoU, greatest absolute difference of scores.
    """

    expected: int
    matched: int
    mask_iou_min: float
    mask_iou_mean: float
    box_iou_min: float
    score_difference: float


def agreement(reference: dict[str, np.ndarray], other: dict[str, np.ndarray], score_tolerance: float) -> Agreement:
    """Compare RawOutputs arrays (see backends.base) of the same N pairs.

    A query counts as a detection where sigmoid(logit) × sigmoid(presence) exceeds SCORE_THRESHOLD, as in
    postprocess.detections; every detection of either side is expected to have a partner on the other side, whose score
    may lie `score_tolerance` below the threshold. Couples are chosen greedily by box IoU plus mask IoU (logits > 0), a
    query of one side having at most one partner, whose box IoU is at least BOX_IOU. Expected and matched count both
    sides.
    """
    expected = matched = 0
    boxes, masks, scores = [], [], []
    for n in range(len(reference["logits"])):
        score_a, score_b = _scores(reference, n), _scores(other, n)
        a = np.flatnonzero(score_a > SCORE_THRESHOLD - score_tolerance)
        b = np.flatnonzero(score_b > SCORE_THRESHOLD - score_tolerance)
        box = box_iou(reference["boxes"][n][a], other["boxes"][n][b])
        mask = mask_iou(reference["masks"][n][a] > 0, other["masks"][n][b] > 0)
        certain_a, certain_b = score_a[a] > SCORE_THRESHOLD, score_b[b] > SCORE_THRESHOLD
        expected += int(certain_a.sum() + certain_b.sum())
        for i, j in couples(np.where(box >= BOX_IOU, box + mask, 0.0)):
            if not (certain_a[i] or certain_b[j]):
                continue
            matched += int(certain_a[i]) + int(certain_b[j])
            boxes.append(box[i, j])
            masks.append(mask[i, j])
            scores.append(abs(score_a[a[i]] - score_b[b[j]]))
    if not boxes:
        return Agreement(expected, matched, *[float("nan")] * 4)
    values = min(masks), np.mean(masks), min(boxes), max(scores)
    return Agreement(expected, matched, *map(float, values))


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union [I,J] of boxes [I,4] and [J,4], each x1 y1 x2 y2; 0 for boxes without area."""
    a, b = a[:, None].astype(np.float64), b[None].astype(np.float64)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = np.clip(sides, 0, None).prod(-1)
    total = np.clip(a[..., 2:] - a[..., :2], 0, None).prod(-1) + np.clip(b[..., 2:] - b[..., :2], 0, None).prod(-1)
    return _ratio(shared, total - shared, empty=0.0)


def mask_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union [I,J] of masks bool [I,h,w] and [J,h,w]; 1 for two empty ones."""
    pixels = int(np.prod(a.shape[1:]))  # spelled out: there may be no masks to infer it from
    a, b = a.reshape(-1, pixels).astype(np.float32), b.reshape(-1, pixels).astype(np.float32)
    shared = a @ b.T
    return _ratio(shared, a.sum(1)[:, None] + b.sum(1)[None] - shared, empty=1.0)


def couples(similarity: np.ndarray) -> list[tuple[int, int]]:
    """Row and column of each greatest entry above 0, each row and column at most once."""
    left, chosen = similarity.copy(), []
    while left.size and left.max() > 0:
        i, j = np.unravel_index(left.argmax(), left.shape)
        chosen.append((int(i), int(j)))
        left[i], left[:, j] = 0, 0
    return chosen


def _scores(outputs: dict[str, np.ndarray], n: int) -> np.ndarray:
    # Clipped so that no exponential overflows; the sigmoid is 0 or 1 in float32 long before.
    logits = np.clip(outputs["logits"][n].astype(np.float64), -60, 60)
    presence = np.clip(outputs["presence"][n].astype(np.float64), -60, 60)
    return 1 / (1 + np.exp(-logits)) / (1 + np.exp(-presence))


def _ratio(part: np.ndarray, whole: np.ndarray, empty: float) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(part), empty, dtype=np.float64), where=whole > 0)
