"""Signed-distance functions of the shapes (after Inigo Quilez, "2D distance functions", iquilezles.org), and an atlas.

Each takes points [...] in units of the object's radius, x to the right and y down, and gives their distance to the
outline, negative inside. Outlines are scaled so that all shapes of one radius look about equally large.
"""

import functools
import math

import torch
from torch import Tensor

from sam3lab.scenes.grammar import SHAPES

REACH = 1.7  # half the side of the square around a shape that the atlas covers
ATLAS = 384  # samples along that side


def polygon(x: Tensor, y: Tensor, points: list[tuple[float, float]]) -> Tensor:
    """A simple polygon, by the distance to its edges and the parity of crossings."""
    square = torch.full_like(x, math.inf)
    sign = torch.ones_like(x)
    for (ax, ay), (bx, by) in zip(points, points[-1:] + points[:-1], strict=True):
        ex, ey, wx, wy = bx - ax, by - ay, x - ax, y - ay
        t = ((wx * ex + wy * ey) / (ex * ex + ey * ey)).clamp(0, 1)
        square = torch.minimum(square, (wx - ex * t) ** 2 + (wy - ey * t) ** 2)
        above, below, left = y >= ay, y < by, ex * wy > ey * wx
        crosses = (above & below & left) | ~(above | below | left)
        sign = torch.where(crosses, -sign, sign)
    return sign * square.sqrt()


def star_points(count: int, outer: float, inner: float) -> list[tuple[float, float]]:
    """Corners of a star, or with inner = 0 of a regular polygon; the first one points up."""
    radii = [outer, inner] * count if inner else [outer] * count
    turns = [2 * math.pi * i / len(radii) - math.pi / 2 for i in range(len(radii))]
    return [(r * math.cos(t), r * math.sin(t)) for r, t in zip(radii, turns, strict=True)]


def ellipse(x: Tensor, y: Tensor) -> Tensor:
    """An ellipse half as wide as long; the distance is exact on the outline and near it to first order."""
    a, b = 1.35, 0.68
    value = torch.hypot(x / a, y / b)
    slope = torch.hypot(x / a**2, y / b**2).clamp(min=1e-6)
    return value * (value - 1) / slope


def heart(x: Tensor, y: Tensor) -> Tensor:
    """Quilez's exact heart, 2.1 radii high."""
    scale = 1.85
    x, y = x.abs() / scale, 0.57 - y / scale
    lobe = torch.hypot(x - 0.25, y - 0.75) - math.sqrt(2) / 4
    diagonal = 0.5 * (x + y).clamp(min=0)
    side = torch.minimum(x**2 + (y - 1) ** 2, (x - diagonal) ** 2 + (y - diagonal) ** 2).sqrt()
    return scale * torch.where(x + y > 1, lobe, side * torch.sign(x - y))


def crescent(x: Tensor, y: Tensor) -> Tensor:
    """A disc without another one."""
    return torch.maximum(torch.hypot(x, y) - 1.2, 0.98 - torch.hypot(x - 0.62, y))


CROSS = [(0.42, 1.2), (0.42, 0.42), (1.2, 0.42), (1.2, -0.42), (0.42, -0.42), (0.42, -1.2)]
DISTANCES = {
    "circle": lambda x, y: torch.hypot(x, y) - 1,
    "ellipse": ellipse,
    "square": lambda x, y: polygon(x, y, [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]),
    "rectangle": lambda x, y: polygon(x, y, [(-1.25, -0.62), (1.25, -0.62), (1.25, 0.62), (-1.25, 0.62)]),
    "triangle": lambda x, y: polygon(x, y, star_points(3, 1.35, 0)),
    "diamond": lambda x, y: polygon(x, y, [(0, -1.45), (0.82, 0), (0, 1.45), (-0.82, 0)]),
    "pentagon": lambda x, y: polygon(x, y, star_points(5, 1.12, 0)),
    "star": lambda x, y: polygon(x, y, star_points(5, 1.4, 0.6)),
    "cross": lambda x, y: polygon(x, y, CROSS + [(-a, -b) for a, b in CROSS]),
    "ring": lambda x, y: (torch.hypot(x, y) - 0.84).abs() - 0.3,
    "heart": heart,
    "crescent": crescent,
}


@functools.cache
def atlas(device: str) -> Tensor:
    """The distances of all shapes, sampled: float32 [12,384,384] over [-REACH, REACH]², corners included."""
    axis = torch.linspace(-REACH, REACH, ATLAS, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([DISTANCES[name](x, y) for name in SHAPES]).float().to(device)
