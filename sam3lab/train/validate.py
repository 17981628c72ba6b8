"""How good a model is on scenes that it was not trained on, in the terms of the SAM 3 paper; quick, on the device."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from sam3lab.model.sam3 import Sam3
from sam3lab.train import batches

THRESHOLDS = np.arange(0.5, 1.0, 0.05)
SCORE, MASK = 0.5, 0.5  # what is a detection, and what belongs to its mask
NAMES = ("cgf1", "il_mcc", "pmf1", "f1_50", "mask_iou", "presence_accuracy")


@torch.no_grad()
def overlaps(model: Sam3, batch: batches.Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Presence logits [N], scores [N,M] of the M ≤ K best queries, IoU of their masks with the K objects [N,M,K] (at
    the image's resolution), and which objects are asked for [N,K]."""
    text_index = torch.arange(len(batch.ids), device=batch.ids.device)
    logits, presence, _, masks, _ = model(batch.pixels, batch.ids, batch.mask, batch.image_index, text_index)
    best = logits.float().sigmoid() * presence.float().sigmoid()
    best = best.topk(min(batch.relevant.shape[1], best.shape[1]))
    masks = masks.gather(1, best.indices[..., None, None].expand(-1, -1, *masks.shape[2:]))
    side = batch.pixels.shape[-1]
    found = F.interpolate(masks.float().sigmoid(), (side, side), mode="bilinear").flatten(2) > MASK
    wanted = batch.masks[batch.image_index].flatten(2)
    found, wanted = found.float(), wanted.float()
    both = found @ wanted.mT
    iou = both / (found.sum(2)[:, :, None] + wanted.sum(2)[:, None] - both).clamp(min=1)
    return tuple(x.float().cpu().numpy() for x in (presence[:, 0], best.values, iou, batch.relevant))


def score(presence: np.ndarray, scores: np.ndarray, iou: np.ndarray, relevant: np.ndarray) -> dict[str, float]:
    """The metrics NAMES from `overlaps` of all pairs.

    il_mcc: Matthews correlation of "something was found" with "something is there". pmf1: F1 over the objects of the
    pairs with an answer, mean over IoU thresholds 0.5 to 0.95. cgf1: 100 times their product. f1_50: the F1 at IoU 0.5
    over all pairs. mask_iou: mean IoU of what is matched there. presence_accuracy: of the presence head alone.
    """
    from scipy.optimize import linear_sum_assignment

    found, relevant = scores > SCORE, relevant > 0
    positive, answered = relevant.any(1), found.any(1)
    matched = []
    for pair in range(len(scores)):
        table = iou[pair][found[pair]][:, relevant[pair]]
        matched.append(table[linear_sum_assignment(-table)])

    def f1(threshold: float, pairs: np.ndarray) -> float:
        hits = sum(int((matched[pair] >= threshold).sum()) for pair in np.flatnonzero(pairs))
        return 2 * hits / max(int(found[pairs].sum() + relevant[pairs].sum()), 1)

    everything = np.concatenate(matched) if matched else np.zeros(0)
    good = everything[everything >= THRESHOLDS[0]]
    pmf1, mcc = float(np.mean([f1(threshold, positive) for threshold in THRESHOLDS])), matthews(answered, positive)
    values = {
        "cgf1": 100 * pmf1 * mcc,
        "il_mcc": mcc,
        "pmf1": pmf1,
        "f1_50": f1(0.5, np.ones_like(positive)),
        "mask_iou": float(good.mean()) if len(good) else 0.0,
        "presence_accuracy": float(((presence > 0) == positive).mean()),
    }
    return {name: values[name] for name in NAMES}


def matthews(said: np.ndarray, true: np.ndarray) -> float:
    """Matthews correlation of two bool arrays; 0 where it is undefined."""
    tp, tn = float((said & true).sum()), float((~said & ~true).sum())
    fp, fn = float((said & ~true).sum()), float((~said & true).sum())
    below = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return float((tp * tn - fp * fn) / below) if below else 0.0


def validate(
    model: Sam3, drawn: Sequence[dict[str, np.ndarray]], device: str, precision: torch.dtype | None = None
) -> dict[str, float]:
    """`score` of a model on drawn batches; autocast to `precision` if given."""
    parts = []
    for arrays in drawn:
        batch = batches.upload(arrays, device, model.resolution, 4 * model.detector.decoder.side, keep_masks=True)
        with torch.autocast(device.split(":")[0], precision, enabled=precision is not None):
            parts.append(overlaps(model, batch))
    return score(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
