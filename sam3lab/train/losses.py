"""The objective of SAM 3 (Carion et al. 2025, "Segment Anything with Concepts") on the outputs of every decoder layer.

The presence head says whether anything in the image answers to the prompt, and the queries where, given that it does:
their class loss is taken over the pairs with an answer only. Mask targets are shares of cells, not bits, so that a
mask's edge is learnt more finely than the mask's grid.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sam3lab.train.batches import Batch
from sam3lab.train.matching import centred, giou

GAMMA = 2.0
WEIGHTS = {
    "class": 4.0,
    "presence": 3.0,
    "l1": 5.0,
    "giou": 2.0,
    "mask_focal": 40.0,
    "mask_dice": 5.0,
    "semantic": 10.0,
    "semantic_dice": 2.0,
}


def focal(logits: Tensor, target: Tensor) -> Tensor:
    """Focal loss of each element (Lin et al. 2017) for targets from 0 to 1 (Li et al. 2020, quality focal loss)."""
    error = (target - logits.sigmoid()).abs()
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none") * error**GAMMA


def dice(logits: Tensor, target: Tensor) -> Tensor:
    """Dice loss over the last dimension, least where probabilities equal the target (Milletari et al. 2016, V-Net)."""
    p = logits.sigmoid()
    return 1 - (2 * (p * target).sum(-1) + 1) / ((p**2).sum(-1) + (target**2).sum(-1) + 1)


def terms(outputs: dict[str, Tensor], matches: tuple[Tensor, Tensor, Tensor], batch: Batch) -> dict[str, Tensor]:
    """Each term of the loss, unweighted; averaged over the L layers, and over pairs or over objects asked for.

    outputs: logits [L,N,Q], presence [L,N], boxes [L,N,Q,4] (corners), masks [L,N,Q,4g,4g] and semantic [N,4g,4g].
    matches: pair, slot [T] and query [L,T] as `matching.assign` gives them.
    """
    pair, slot, query = matches
    layers, pairs, queries = outputs["logits"].shape
    rows = ((torch.arange(layers, device=pair.device)[:, None] * pairs + pair) * queries + query).flatten()
    count = max(len(pair), 1)
    positive = batch.relevant.any(dim=1).float()
    scene = batch.image_index.index_select(0, pair)

    logits = outputs["logits"].float()
    classes = torch.zeros_like(logits).flatten().index_fill(0, rows, 1.0).view_as(logits)
    boxes = outputs["boxes"].flatten(0, 2).index_select(0, rows).unflatten(0, (layers, -1))
    masks = outputs["masks"].flatten(0, 2).index_select(0, rows).float().flatten(1).unflatten(0, (layers, -1))
    target, coverage = batch.boxes[scene, slot], batch.coverage[scene, slot].flatten(1)
    union = torch.zeros(pairs, coverage.shape[1], device=pair.device).index_add(0, pair, coverage)
    semantic, presence = outputs["semantic"].float().flatten(1), outputs["presence"].float()
    return {
        "class": (focal(logits, classes).sum(2) * positive).sum() / (count * layers),
        "presence": F.binary_cross_entropy_with_logits(presence, positive.expand_as(presence)),
        "l1": (centred(boxes) - centred(target)).abs().sum() / (count * layers),
        "giou": (1 - giou(boxes, target)).sum() / (count * layers),
        "mask_focal": focal(masks, coverage.expand_as(masks)).mean(-1).sum() / (count * layers),
        "mask_dice": dice(masks, coverage).sum() / (count * layers),
        "semantic": F.binary_cross_entropy_with_logits(semantic, union),
        "semantic_dice": (dice(semantic, union) * positive).sum() / positive.sum().clamp(min=1),
    }


def total(values: dict[str, Tensor]) -> Tensor:
    """The weighted sum that training lowers."""
    return sum(WEIGHTS[name] * value for name, value in values.items())
