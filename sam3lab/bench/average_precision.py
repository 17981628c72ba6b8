"""Mask AP through pycocotools, and the same ranking weighted, which is what its bootstrap needs.

Every pair is an image, and all are of one category; see `bench.accuracy` for why.
"""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sam3lab.bench import coco

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of IoU
RECALLS = np.linspace(0, 1, 101)  # at which COCO averages the precision
MAX_DETECTIONS = 100  # of a pair, COCO's limit


@dataclass(frozen=True)
class Ranking:
    """The predictions of all pairs by falling score, as COCOeval matched them.

    pair intp [D], each prediction's pair; hit bool [T,D], whether it matched a true mask at each threshold; objects int
    [pairs], the number of true masks; precision float [T], COCO's average precision, NaN where no mask is true.
    """

    pair: np.ndarray
    hit: np.ndarray
    objects: np.ndarray
    precision: np.ndarray

    def resampled(self, image: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """AP [R] of R resamples of the images: image intp [pairs], draws int [R,images], how often each is drawn.

        A prediction drawn n times counts n times, which is what COCOeval would make of n copies of its image. NaN for a
        resample without a true mask.
        """
        hits = [np.flatnonzero(hit) for hit in self.hit]
        prediction_image, objects = image[self.pair], draws[:, image] @ self.objects
        found = np.full(len(draws), np.nan)
        for row in np.flatnonzero(objects):
            weight = draws[row, prediction_image]
            ranked = np.cumsum(weight)
            found[row] = np.mean([_average(weight[at], ranked[at], objects[row]) for at in hits])
        return found


def _average(weight: np.ndarray, ranked: np.ndarray, objects: int) -> float:
    """Mean over RECALLS of the greatest precision at that recall or a greater one, from the true positives alone, where
    precision peaks: how often each is drawn, and how many predictions rank up to it, itself included.
    """
    reached = np.cumsum(weight)
    best = np.maximum.accumulate((reached / np.maximum(ranked, 1))[::-1])[::-1]
    return float(np.append(best, 0.0)[np.searchsorted(reached / objects, RECALLS)].mean())


def rank(pairs: Sequence[coco.Pair]) -> Ranking:
    """Match and rank the predictions of all pairs."""
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress
        work = COCOeval(_dataset(pairs, "masks"), _dataset(pairs, "predicted"), "segm")
        work.params.areaRng, work.params.areaRngLbl = [[0, 1e10]], ["all"]
        work.params.maxDets = [MAX_DETECTIONS]
        work.evaluate()
        work.accumulate()
    # One entry a pair, None where it has neither a true mask nor a prediction.
    seen = [(number, entry) for number, entry in enumerate(work.evalImgs) if entry is not None]
    scores = np.concatenate([np.empty(0), *(entry["dtScores"] for _, entry in seen)])
    hit = np.concatenate([np.empty((len(THRESHOLDS), 0)), *(entry["dtMatches"] for _, entry in seen)], axis=1) > 0
    owner = np.repeat([number for number, _ in seen], [len(entry["dtScores"]) for _, entry in seen]).astype(np.intp)
    order = np.argsort(-scores, kind="stable")  # ties in the order that COCO has them
    precision = work.eval["precision"][:, :, 0, 0, 0]
    return Ranking(
        pair=owner[order],
        hit=hit[:, order],
        objects=np.array([len(pair.masks) for pair in pairs]),
        precision=np.where(precision > -1, precision, np.nan).mean(axis=1),
    )


def _dataset(pairs: Sequence[coco.Pair], masks: str):
    """The pairs' "masks" or "predicted" as pycocotools' COCO, with ids of its own: COCOeval takes a match with id 0 for
    none."""
    from pycocotools import mask
    from pycocotools.coco import COCO

    entries = []
    for number, pair in enumerate(pairs):
        codes = getattr(pair, masks)
        scores = pair.scores if masks == "predicted" else [1.0] * len(codes)
        for code, area, score in zip(codes, mask.area(codes) if codes else (), scores, strict=True):
            entry = {"id": len(entries) + 1, "image_id": number, "category_id": coco.CATEGORY["id"]}
            entries.append(entry | {"segmentation": code, "area": float(area), "iscrowd": 0, "score": score})
    dataset = COCO()
    images = [{"id": n, "height": pair.size[0], "width": pair.size[1]} for n, pair in enumerate(pairs)]
    dataset.dataset = {"images": images, "annotations": entries, "categories": [coco.CATEGORY]}
    dataset.createIndex()
    return dataset
