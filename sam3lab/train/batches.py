"""Batches of scenes and prompts, in a fixed order: drawn by worker processes, rendered on the device.

Batch i of training holds the scenes with the seeds i·B to i·B + B − 1, so that a step's number is all there is to
remember of the data.
"""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import signal
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sam3lab.model.config import CONTEXT
from sam3lab.model.tokenizer import BOS, EOS
from sam3lab.scenes import prompts
from sam3lab.scenes.grammar import SEPARATOR, Prompt, matches, words
from sam3lab.scenes.specification import stack

if TYPE_CHECKING:  # the processes that draw scenes do without torch
    from torch import Tensor

AHEAD = 3  # batches in flight for each worker


def encode(asked: list[Prompt], word_ids: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids int64 and mask bool [P,32] of prompts, as sam3-nano's tokenizer gives them for their text."""
    ids = np.full((len(asked), CONTEXT), word_ids[EOS])
    mask = np.zeros((len(asked), CONTEXT), dtype=bool)
    for row, prompt in enumerate(asked):
        tokens = [BOS]
        for phrase in prompt:
            tokens += [SEPARATOR] * (len(tokens) > 1) + words(phrase)
        tokens.append(EOS)
        ids[row, : len(tokens)] = [word_ids[token] for token in tokens]
        mask[row, : len(tokens)] = True
    return ids, mask


def draw(seeds: range, word_ids: dict[str, int]) -> dict[str, np.ndarray]:
    """`specification.stack`'s arrays of these scenes and, for their N prompts in order, ids and mask [N,32] and which
    objects each asks for, asked bool [N,12]."""
    scenes, asked = zip(*map(prompts.scene, seeds), strict=True)
    arrays = stack(scenes)
    ids, mask = encode(list(itertools.chain(*asked)), word_ids)
    hits = [
        matches(prompt, objects) for objects, many in zip(arrays["attributes"], asked, strict=True) for prompt in many
    ]
    return arrays | {"ids": ids, "mask": mask, "asked": np.stack(hits)}


def stream(first: int, size: int, word_ids: dict[str, int], workers: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Training's batches of `size` scenes from number `first` on, without end; drawn ahead by `workers` processes."""
    batches = (range(number * size, (number + 1) * size) for number in itertools.count(first))
    if not workers:
        for seeds in batches:
            yield draw(seeds, word_ids)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        # Ctrl-C goes to every process of the terminal. The workers inherit that it is held back: theirs is to be closed.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            pending = deque(pool.submit(draw, seeds, word_ids) for seeds in itertools.islice(batches, AHEAD * workers))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        try:
            while True:
                pending.append(pool.submit(draw, next(batches), word_ids))
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True)
class Batch:
    """What one step works on: B images, N prompts with N a multiple of B, and what they should find.

    pixels uint8 [B,3,S,S]; ids int64, mask bool [N,32]; image_index int64 [N]; boxes float32 [B,K,4] (x1 y1 x2 y2);
    coverage float32 [B,K,4g,4g], the share of each mask cell that an object fills; relevant bool [N,K], the objects
    that each prompt asks for and that can be seen; masks bool [B,K,S,S], kept for validation only.
    """

    pixels: Tensor
    ids: Tensor
    mask: Tensor
    image_index: Tensor
    boxes: Tensor
    coverage: Tensor
    relevant: Tensor
    masks: Tensor | None = None


def upload(arrays: dict[str, np.ndarray], device: str, side: int, cells: int, keep_masks: bool = False) -> Batch:
    """Render a drawn batch on the device, at side × side pixels with cells × cells mask cells; waits for nothing."""
    import torch

    from sam3lab.scenes.render import boxes, render

    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    if device.startswith("cuda"):
        tensors = {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in tensors.items()}
    rendered = render(tensors, side)
    pairs = len(tensors["asked"]) // len(rendered.image)
    area = shares(side, cells, device)
    return Batch(
        pixels=rendered.image,
        ids=tensors["ids"],
        mask=tensors["mask"],
        image_index=torch.arange(len(rendered.image), device=device).repeat_interleave(pairs),
        boxes=boxes(rendered.masks),
        coverage=area @ rendered.masks.float() @ area.T,
        relevant=tensors["asked"] & rendered.present.repeat_interleave(pairs, dim=0),
        masks=rendered.masks if keep_masks else None,
    )


@functools.cache
def shares(side: int, cells: int, device: str = "cpu"):
    """The matrix float32 [cells,side] that averages `side` pixels into `cells` cells, whose edges may cut pixels."""
    import torch

    edges = torch.arange(cells + 1, dtype=torch.float64) * side / cells
    pixel = torch.arange(side, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], pixel + 1) - torch.maximum(edges[:-1, None], pixel)
    return (overlap.clamp(min=0) * cells / side).float().to(device)
