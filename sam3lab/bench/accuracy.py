"""How right the detections are: the SAM 3 paper's cgF1, mask AP, and the overlap of matched masks.

Definitions are those of Carion et al. 2025, "SAM 3: Segment Anything with Concepts", appendix E.3. What counts is the
image–prompt pair. It is positive where the ground truth has at least one mask, and only predictions scored at least
CONFIDENCE take part.

IL_MCC   Matthews correlation, over all pairs, of "is positive" with "has a prediction", whatever the masks are like.
pmF1     over positive pairs only. In each pair, predictions and true masks are matched one to one so that the sum of
         their IoUs is greatest. At a threshold t a couple of IoU >= t is a true positive; all other predictions are
         false positives, all other true masks false negatives. pmF1(t) = 2 TP / (2 TP + FP + FN) of the counts over all
         positive pairs; pmF1 is its mean over t = 0.50, 0.55, …, 0.95.
cgF1     100 × pmF1 × IL_MCC.

A positive pair without a prediction has all its masks as false negatives. A prediction on a negative pair counts in
IL_MCC alone. IL_MCC is 0 where one of its margins is empty (all pairs positive, say, or nothing predicted); pmF1 is 0
where no pair is positive. An empty mask overlaps nothing. Crowd annotations, and pairs with is_instance_exhaustive 0,
are left out. The released evaluator (facebookresearch/sam3, sam3/eval/cgf1_eval.py) does all of this; it departs from
the paper in that a score of exactly CONFIDENCE takes part, which is followed here, and in that it adds up to 1e-4 to
denominators, which is not: cgF1 differs by less than 0.05 for it.

AP and AP50 are those of pycocotools' COCOeval over all scores, all areas and at most 100 predictions a pair, every pair
being an image and all of them of one category: the phrases of an open vocabulary are too rare to average over. They
need predictions of scores well under CONFIDENCE too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sam3lab.bench import average_precision, coco

CONFIDENCE = 0.5
THRESHOLDS = average_precision.THRESHOLDS
RESAMPLES, LEVEL = 1000, 0.95


@dataclass(frozen=True)
class Accuracy:
    """cgf1 is in −100..100 and il_mcc in −1..1; pmf1, pmf1_50, ap, ap50 and mean_iou are in 0..1.

    pmf1_50 and ap50 are at IoU 0.5. mean_iou is over couples of IoU at least 0.5. The bounds _low and _high are of 95%
    percentile bootstrap intervals over images, all pairs of an image going together. NaN: AP where no mask is true,
    mean_iou without any couple. Counts: pairs; positive, those with a true mask; objects, the true masks; predictions
    of at least CONFIDENCE; matched, the couples; and the pairs by what is there and what was found: true_positive,
    false_positive, false_negative, true_negative.
    """

    cgf1: float
    cgf1_low: float
    cgf1_high: float
    il_mcc: float
    pmf1: float
    pmf1_50: float
    ap: float
    ap_low: float
    ap_high: float
    ap50: float
    mean_iou: float
    pairs: int
    positive: int
    objects: int
    predictions: int
    matched: int
    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int


def evaluate(truth: dict | Path | str, predicted: Sequence[dict] | Path | str, seed: int = 0) -> Accuracy:
    """Score predictions against the ground truth, each a file in the format of `bench.coco` or the content of one.

    Raises UserError as coco.read does.
    """
    pairs = coco.read(truth, predicted)
    names: dict[str, int] = {}
    image = np.array([names.setdefault(pair.file_name, len(names)) for pair in pairs], dtype=np.intp)
    # Each row says how often each image is drawn.
    draws = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)

    counts = _counts(pairs)
    per_image = np.zeros((len(names), counts.shape[1]))
    np.add.at(per_image, image, counts)
    totals = counts.sum(axis=0)
    cgf1, il_mcc, pmf1 = _scores(totals)
    cgf1_low, cgf1_high = _interval(_scores(draws @ per_image)[0])

    ranking = average_precision.rank(pairs)
    ap_low, ap_high = _interval(ranking.resampled(image, draws))

    tp, fp, fn, tn, objects, predictions = totals[:6].astype(int).tolist()
    matched, overlap = int(totals[_HITS]), totals[_OVERLAP]
    return Accuracy(
        cgf1=float(cgf1),
        cgf1_low=cgf1_low,
        cgf1_high=cgf1_high,
        il_mcc=float(il_mcc),
        pmf1=float(pmf1.mean()),
        pmf1_50=float(pmf1[0]),
        ap=float(ranking.precision.mean()),
        ap_low=ap_low,
        ap_high=ap_high,
        ap50=float(ranking.precision[0]),
        mean_iou=float(overlap / matched) if matched else float("nan"),
        pairs=len(pairs),
        positive=tp + fn,
        objects=objects,
        predictions=predictions,
        matched=matched,
        true_positive=tp,
        false_positive=fp,
        false_negative=fn,
        true_negative=tn,
    )


# Columns of _counts: the pair as true positive, false positive, false negative, true negative; true masks; predictions;
# then 2 TP + FP + FN, which is both numbers together whatever the threshold, and 0 for a negative pair; the sum of the
# couples' IoU; and the couples at each threshold.
_DENOMINATOR, _OVERLAP, _HITS = 6, 7, 8


def _counts(pairs: Sequence[coco.Pair]) -> np.ndarray:
    from scipy.optimize import linear_sum_assignment

    rows = np.zeros((len(pairs), _HITS + len(THRESHOLDS)))
    for row, pair in zip(rows, pairs, strict=True):
        true = pair.masks
        found = [mask for mask, score in zip(pair.predicted, pair.scores, strict=True) if score >= CONFIDENCE]
        row[(0 if found else 2) if true else (1 if found else 3)] = 1
        row[4:6] = len(true), len(found)
        if true:
            row[_DENOMINATOR] = len(true) + len(found)
        if true and found:
            iou = coco.iou(found, true)
            couples = iou[linear_sum_assignment(iou, maximize=True)]
            row[_OVERLAP] = couples[couples >= THRESHOLDS[0]].sum()
            row[_HITS:] = (couples[:, None] >= THRESHOLDS).sum(axis=0)
    return rows


def _scores(totals: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """cgF1 [...], IL_MCC [...] and pmF1 at each threshold [...,10] of totals [...,columns]."""
    tp, fp, fn, tn = np.moveaxis(totals[..., :4], -1, 0)
    margins = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    il_mcc = _ratio(tp * tn - fp * fn, margins)
    denominator = np.broadcast_to(totals[..., _DENOMINATOR, None], totals[..., _HITS:].shape)
    pmf1 = _ratio(2 * totals[..., _HITS:], denominator)
    return 100 * pmf1.mean(axis=-1) * il_mcc, il_mcc, pmf1


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(np.shape(whole)), where=whole > 0)


def _interval(values: np.ndarray) -> tuple[float, float]:
    """Percentile bounds of the resamples that have a value; NaN where none has."""
    values = values[~np.isnan(values)]
    if not values.size:
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
