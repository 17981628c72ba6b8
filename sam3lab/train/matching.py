"""Which query answers for which object: the one-to-one assignment of least cost (Carion et al. 2020, DETR)."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sam3lab.errors import UserError

CLASS, L1, GIOU = 2.0, 5.0, 2.0  # weights of the costs
ALPHA, GAMMA = 0.25, 2.0


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised intersection over union (Rezatofighi et al. 2019) of boxes [...,4] (x1 y1 x2 y2) that broadcast."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    both = (high - low).clamp(min=0).prod(-1)
    either = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - both
    return both / either.clamp(min=1e-8) - (hull - either) / hull.clamp(min=1e-8)


@torch.no_grad()
def costs(logits: Tensor, boxes: Tensor, targets: Tensor) -> Tensor:
    """Cost [L,N,Q,K] of each query for each object, from logits [L,N,Q], boxes [L,N,Q,4] and targets [N,K,4] (corners).

    The class part is the focal loss that a match would change (Zhu et al. 2021, Deformable DETR).
    """
    probability = logits.sigmoid()
    found = ALPHA * (1 - probability) ** GAMMA * -F.logsigmoid(logits)
    missed = (1 - ALPHA) * probability**GAMMA * -F.logsigmoid(-logits)
    boxes, targets = boxes.unsqueeze(3), targets[None, :, None]
    distance = (centred(boxes) - centred(targets)).abs().sum(-1)
    return CLASS * (found - missed).unsqueeze(-1) + L1 * distance - GIOU * giou(boxes, targets)


def centred(boxes: Tensor) -> Tensor:
    """Boxes (x1 y1 x2 y2) as (cx cy w h)."""
    low, high = boxes.chunk(2, dim=-1)
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def assign(cost: np.ndarray, relevant: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The matches of least cost, from costs [L,N,Q,K] and which objects count, bool [N,K].

    Returns pair, slot int64 [T], the T objects that count, and query int64 [L,T], which query each has in each layer.
    Raises UserError where a cost is not finite: training has diverged.
    """
    from scipy.optimize import linear_sum_assignment

    if not np.isfinite(cost).all():
        raise UserError("training has diverged (an output is not finite): resume with a smaller --learning-rate")
    chosen = cost.argmin(axis=2)  # right where a prompt asks for one object
    for row in np.flatnonzero(relevant.sum(axis=1) > 1):
        objects = np.flatnonzero(relevant[row])
        for layer in range(len(cost)):
            queries, columns = linear_sum_assignment(cost[layer, row][:, objects])
            chosen[layer, row, objects[columns]] = queries
    pair, slot = np.nonzero(relevant)
    return pair, slot, chosen[:, pair, slot]
