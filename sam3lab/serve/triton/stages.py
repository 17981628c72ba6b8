"""A stage on several requests at once, with one of the study's own backends: what the Python back end's models compute.

Requests are joined here and not by Triton, so that they may have different numbers of prompts.
"""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from sam3lab.backends.base import Backend

Arrays = Sequence[np.ndarray]


def image(backend: Backend, requests: Sequence[Arrays]) -> list[list[np.ndarray]]:
    """Features of each request's pixels uint8 [B,3,S,S], as [B,C,·,·] float32 at 4×, 2× and 1× the patch grid."""
    features = backend.image(backend.upload(_joined([pixels for (pixels,) in requests])))
    return _split(backend.download(tuple(features)), [len(pixels) for (pixels,) in requests])


def text(backend: Backend, requests: Sequence[Arrays]) -> list[list[np.ndarray]]:
    """Text features [B,P,32,C] float32 of each request's token ids int64 [B,P,32] and mask bool [B,P,32]."""
    ids, mask = (backend.upload(_joined([_flat(request[each]) for request in requests])) for each in (0, 1))
    features = backend.download(backend.text(ids, mask))
    return _by_image(_split((features,), [_pairs(ids) for ids, _ in requests]), [ids for ids, _ in requests])


def detect(backend: Backend, requests: Sequence[Arrays]) -> list[list[np.ndarray]]:
    """Detections of every image of a request with each of that image's prompts.

    A request has features [B,C,·,·] thrice, text features [B,P,32,C] and mask [B,P,32]. Its detections are those of
    RawOutputs with [B,P] for [N]: logits [B,P,Q], presence [B,P,1], boxes [B,P,Q,4], masks [B,P,Q,4g,4g], semantic
    [B,P,1,4g,4g].
    """
    images = [len(request[0]) for request in requests]
    first = [0, *accumulate(images)]
    image_index = [
        np.repeat(np.arange(start, start + count), request[3].shape[1])
        for start, count, request in zip(first, images, requests, strict=False)
    ]
    features = tuple(backend.upload(_joined([request[level] for request in requests])) for level in range(3))
    texts, mask = (backend.upload(_joined([_flat(request[each]) for request in requests])) for each in (3, 4))
    pairs = [_pairs(request[3]) for request in requests]
    indices = backend.upload(_joined(image_index)), backend.upload(np.arange(sum(pairs)))
    found = backend.download(tuple(backend.detect(features, texts, mask, *indices)))
    return _by_image(_split(found, pairs), [request[3] for request in requests])


def _pairs(value: np.ndarray) -> int:
    return value.shape[0] * value.shape[1]


def _flat(value: np.ndarray) -> np.ndarray:
    return value.reshape(-1, *value.shape[2:])


def _joined(values: list[np.ndarray]) -> np.ndarray:
    return values[0] if len(values) == 1 else np.concatenate(values)


def _split(values: tuple[np.ndarray, ...], rows: list[int]) -> list[list[np.ndarray]]:
    """For each request, its rows of every value."""
    ends = list(accumulate(rows))
    return [[value[end - count : end] for value in values] for end, count in zip(ends, rows, strict=True)]


def _by_image(results: list[list[np.ndarray]], like: list[np.ndarray]) -> list[list[np.ndarray]]:
    """[N,…] as [B,P,…], with each request's own B and P."""
    return [
        [value.reshape(*given.shape[:2], *value.shape[1:]) for value in result]
        for result, given in zip(results, like, strict=True)
    ]
