"""Ground truth as COCO files have it, of masks that a test makes."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from sam3lab.bench.coco import CATEGORY
from sam3lab.postprocess import Detections


def ground_truth(pairs: Iterable[tuple[str, str, np.ndarray]]) -> dict[str, Any]:
    """The ground truth of pairs (file name, prompt, masks bool [k,H,W]), JSON-ready; ids are 1, 2, … in their order."""
    images, annotations = [], []
    for pair, (file_name, prompt, masks) in enumerate(pairs, 1):
        height, width = masks.shape[1:]
        images.append({"id": pair, "file_name": file_name, "text_input": prompt, "height": height, "width": width})
        images[-1]["is_instance_exhaustive"] = 1
        for record in Detections(np.ones(len(masks)), boxes(masks), masks).to_coco(pair, CATEGORY["id"]):
            del record["score"]
            annotations.append({"id": len(annotations) + 1, "iscrowd": 0, **record})
    return {"images": images, "annotations": annotations, "categories": [CATEGORY]}


def boxes(masks: np.ndarray) -> np.ndarray:
    """The smallest boxes [k,4], x0 y0 x1 y1 in pixels, that hold the masks bool [k,H,W]; 0 for an empty one."""
    found = np.zeros((len(masks), 4))
    for low, high, axis in ((0, 2, 1), (1, 3, 2)):
        line = masks.any(axis=axis)
        found[:, low] = line.argmax(axis=1)
        found[:, high] = np.where(line.any(axis=1), line.shape[1] - line[:, ::-1].argmax(axis=1), 0)
    return found
