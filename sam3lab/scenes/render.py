"""Scenes to pixels and masks, in batches, on whatever device the tensors are.

One pass for all objects of all scenes, with no loop over either and nothing that waits for the host. Objects are
painted in order, later ones over earlier ones, with edges antialiased over one pixel; then come light, blur and noise.
"""

import functools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sam3lab.scenes.grammar import TEXTURES
from sam3lab.scenes.shapes import REACH, atlas
from sam3lab.scenes.specification import OBJECT, PHOTOGRAPHS, SETTING

VISIBLE = 0.4  # an object is part of the ground truth if at least this share of its pixels can be seen
PHOTOGRAPH_SIDE = 512
LARGEST_BLUR = 0.0045  # standard deviation, in image sides


@dataclass(frozen=True)
class Rendered:
    """A batch of B scenes with room for K objects each.

    image uint8 [B,3,S,S]; masks bool [B,K,S,S], what can be seen of each object, disjoint; present bool [B,K], the
    objects of the ground truth: those of which at least VISIBLE is seen. Masks of other objects are empty.
    """

    image: Tensor
    masks: Tensor
    present: Tensor


def render(scenes: dict[str, Tensor], side: int) -> Rendered:
    """Render `specification.stack`'s arrays, as tensors on one device, at a resolution of side × side pixels."""
    attributes = scenes["attributes"]
    o = dict(zip(OBJECT, scenes["objects"][..., None, None].unbind(2), strict=True))
    s = dict(zip(SETTING, scenes["setting"][..., None, None].unbind(1), strict=True))
    axis = (torch.arange(side, device=attributes.device, dtype=torch.float32) + 0.5) / side
    x, y = axis[None, :], axis[:, None]

    dx, dy = x - o["x"], y - o["y"]  # [B,K,S,S]
    exists = attributes[..., 0, None, None] >= 0
    coverage = _coverage(dx, dy, o, attributes[..., 0], side) * exists
    uncovered = (1 - coverage).flip(1).cumprod(1).flip(1)  # by the object itself and all in front of it
    seen = coverage * torch.cat([uncovered[:, 1:], torch.ones_like(uncovered[:, :1])], dim=1)

    along = dx * o["shade_angle"].cos() + dy * o["shade_angle"].sin()
    paint = seen * (1 + o["shade"] * along / o["radius"].clamp(min=1e-3))
    pattern = paint * _pattern(dx, dy, o, attributes[..., 2, None, None], side)
    first, second = scenes["objects"][..., 4:7], scenes["objects"][..., 7:10]
    image = _background(x, y, s, scenes["photograph"]) * uncovered[:, :1]
    image = image + torch.einsum("bkhw,bkc->bchw", paint, first)
    image = image + torch.einsum("bkhw,bkc->bchw", pattern, second - first)

    solid = coverage > 0.5
    front = solid.flip(1).cumsum(1, dtype=torch.int16).flip(1)
    masks = solid & (front == 1)
    share = masks.sum((2, 3)) / solid.sum((2, 3)).clamp(min=1)
    present = share >= VISIBLE
    return Rendered(_camera(image, s, scenes["seed"], side), masks & present[..., None, None], present)


def boxes(masks: Tensor) -> Tensor:
    """Tight boxes float32 [...,4] (x1 y1 x2 y2, image sides = 1) of masks bool [...,S,S]; zeros for an empty mask."""
    side = masks.shape[-1]
    ends = []
    for across in (masks.any(-2), masks.any(-1)):
        inside = across.to(torch.uint8)
        first, last = inside.argmax(-1), side - inside.flip(-1).argmax(-1)
        ends.append((first, torch.where(across.any(-1), last, 0)))
    (x1, x2), (y1, y2) = ends
    return torch.stack([x1, y1, x2, y2], dim=-1) / side


def _coverage(dx: Tensor, dy: Tensor, o: dict[str, Tensor], shape: Tensor, side: int) -> Tensor:
    """The share of each pixel that each object covers, before occlusion: [B,K,S,S]."""
    scale = REACH * o["radius"].clamp(min=1e-3)
    cos, sin = o["angle"].cos() / scale, o["angle"].sin() / scale
    table = atlas(str(dx.device))
    layer = (2 * shape.clamp(min=0) + 1) / len(table) - 1  # the centre of a slice: no mixing with the next one
    fit = (table.shape[-1] - 1) / table.shape[
        -1
    ]  # the outer samples lie on the edges; grid_sample has them half a step in
    u, v = fit * (dx * cos + dy * sin), fit * (dy * cos - dx * sin)
    grid = torch.stack([u, v, layer[..., None, None].expand_as(u)], dim=-1).flatten(0, 1)[None]
    distance = F.grid_sample(table[None, None], grid, padding_mode="border", align_corners=False).view_as(u)
    return (0.5 - distance * o["radius"] * side).clamp(0, 1)


def _pattern(dx: Tensor, dy: Tensor, o: dict[str, Tensor], texture: Tensor, side: int) -> Tensor:
    """The share of the second colour: stripes or dots that turn with `slant`, none on plain objects."""
    pixels = o["period"] * side
    period = o["period"].clamp(min=1e-3)
    cos, sin = o["slant"].cos() / period, o["slant"].sin() / period
    u, v = dx * cos + dy * sin + o["phase"], dy * cos - dx * sin
    stripes = 0.5 + pixels / (2 * math.pi) * torch.sin(2 * math.pi * u)
    dots = 0.5 + pixels * (0.3 - torch.hypot(u - u.round(), v - v.round()))
    striped, dotted = (texture == TEXTURES.index(name) for name in ("striped", "dotted"))
    return stripes.clamp(0, 1) * striped + dots.clamp(0, 1) * dotted


@functools.cache
def photographs(device: str) -> Tensor:
    """The photographs behind the scenes: uint8 [13,3,512,512] on the device. Raises UserError if one is missing."""
    from sam3lab import images

    pixels = [images.pixels(images.load(name), PHOTOGRAPH_SIDE) for name in PHOTOGRAPHS]
    return torch.stack([torch.from_numpy(array) for array in pixels]).to(device)


def _background(x: Tensor, y: Tensor, s: dict[str, Tensor], photograph: Tensor) -> Tensor:
    """A crop of a photograph, or a gradient between two colours: [B,3,S,S]."""
    column = s["crop_x"] + s["crop"] * (0.5 + (x - 0.5) * s["mirror"])
    row = s["crop_y"] + s["crop"] * y
    grid = torch.stack(torch.broadcast_tensors(column, row), dim=-1) * 2 - 1
    photos = photographs(str(photograph.device))[photograph.clamp(min=0)]
    crops = F.grid_sample(photos.float() / 255, grid, padding_mode="border", align_corners=False)
    t = 0.5 + (x - 0.5) * s["angle"].cos() + (y - 0.5) * s["angle"].sin()
    ends = [torch.stack([s[c + end] for c in ("red", "green", "blue")], dim=1) for end in ("", "2")]
    gradient = torch.lerp(*ends, t.clamp(0, 1).unsqueeze(1))
    return torch.where((photograph >= 0)[:, None, None, None], crops, gradient)


def _camera(image: Tensor, s: dict[str, Tensor], seed: Tensor, side: int) -> Tensor:
    """Blur, light and noise, and the rounding to uint8."""
    image = _blur(image, s["blur"][:, 0, 0] * side, math.ceil(2.5 * LARGEST_BLUR * side))
    tint = torch.stack([1 + s["warmth"], torch.ones_like(s["warmth"]), 1 - s["warmth"]], dim=1)
    image = ((image - 0.5) * s["contrast"].unsqueeze(1) + 0.5 + s["brightness"].unsqueeze(1)) * tint
    image = image + s["noise"].unsqueeze(1) * _noise(seed, image.shape[1:])
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)


def _blur(image: Tensor, deviation: Tensor, reach: int) -> Tensor:
    """A Gaussian blur of its own deviation, in pixels, for each image."""
    offset = torch.arange(-reach, reach + 1, device=image.device)
    kernel = torch.exp(-0.5 * (offset / deviation.clamp(min=0.05)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)[:, None, None]
    flat = F.pad(image.flatten(0, 1)[None], (reach,) * 4, mode="replicate")
    flat = F.conv2d(flat, kernel, groups=kernel.shape[0])
    return F.conv2d(flat, kernel.transpose(2, 3), groups=kernel.shape[0]).view_as(image)


def _noise(seed: Tensor, shape: torch.Size) -> Tensor:
    """Nearly normal noise [B,*shape] from a hash of seed and place: the same on every device and in every batch.

    The hash is the 32-bit finaliser of MurmurHash3; the sum of its four bytes has mean 510 and deviation 147.8.
    """
    word = 0xFFFFFFFF
    place = torch.arange(shape.numel(), device=seed.device)
    x = (place + (seed % 1000003 * 2654435761)[:, None]) & word
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & word
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & word
    x = x ^ (x >> 16)
    total = sum((x >> shift) & 255 for shift in (0, 8, 16, 24))
    return ((total - 510) / 147.8).view(-1, *shape)
