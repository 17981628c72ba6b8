"""What the server sends a worker, and what comes back: requests with what they share laid together."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sam3lab.serve.request import Candidates


@dataclass(frozen=True)
class Inputs:
    """A request as a model takes it: pixels uint8 [3,S,S] with their digest, ids int64 [P,32], mask bool [P,32]."""

    pixels: np.ndarray
    digest: bytes
    ids: np.ndarray
    mask: np.ndarray

    @property
    def prompts(self) -> list[bytes]:
        """What tells its prompts from others, by their tokens."""
        return [prompt_key(*row) for row in zip(self.ids, self.mask, strict=True)]


def digest(pixels: np.ndarray) -> bytes:
    """A cryptographic hash: no one can make an image that is taken for another one in a cache."""
    return hashlib.sha256(np.ascontiguousarray(pixels)).digest()


def prompt_key(ids: np.ndarray, mask: np.ndarray) -> bytes:
    """The tokens of one prompt, int64 [32], with their mask, bool [32]."""
    return ids.tobytes() + np.packbits(mask).tobytes()


@dataclass(frozen=True)
class Ask:
    """What one request of a batch wants: an image and prompts by their place in the batch, and the least score."""

    image: int
    texts: tuple[int, ...]
    floor: float


@dataclass(frozen=True)
class Batch:
    """Requests that are served together. images: (digest, pixels) each once; ids, mask [P,32]: each prompt once."""

    images: tuple[tuple[bytes, np.ndarray], ...]
    ids: np.ndarray
    mask: np.ndarray
    asks: tuple[Ask, ...]

    @classmethod
    def of(cls, wanted: Sequence[tuple[Inputs, float]]) -> "Batch":
        """Of each request's inputs and least score, in their order."""
        images: dict[bytes, int] = {}
        texts: dict[bytes, int] = {}
        pixels, rows, asks = [], [], []
        for inputs, floor in wanted:
            if inputs.digest not in images:
                images[inputs.digest] = len(images)
                pixels.append((inputs.digest, inputs.pixels))
            for key, row in zip(inputs.prompts, zip(inputs.ids, inputs.mask, strict=True), strict=True):
                if key not in texts:
                    texts[key] = len(texts)
                    rows.append(row)
            asks.append(Ask(images[inputs.digest], tuple(texts[key] for key in inputs.prompts), floor))
        ids, mask = map(np.stack, zip(*rows, strict=True))
        return cls(tuple(pixels), ids, mask, tuple(asks))

    def part(self, first: int, last: int) -> "Batch":
        """The requests from `first` to before `last`, with what they need and nothing else."""
        asks = self.asks[first:last]
        images = list(dict.fromkeys(ask.image for ask in asks))
        texts = list(dict.fromkeys(text for ask in asks for text in ask.texts))
        moved = (
            Ask(images.index(ask.image), tuple(texts.index(text) for text in ask.texts), ask.floor) for ask in asks
        )
        return Batch(tuple(self.images[i] for i in images), self.ids[texts], self.mask[texts], tuple(moved))

    @property
    def pairs(self) -> dict[tuple[int, int], float]:
        """Each image–prompt pair that is asked for, once, with the least score that anyone asks of it."""
        found: dict[tuple[int, int], float] = {}
        for ask in self.asks:
            for text in ask.texts:
                pair = ask.image, text
                found[pair] = min(ask.floor, found.get(pair, ask.floor))
        return found


@dataclass(frozen=True)
class Found:
    """A request's answer from the worker: of each of its prompts, in order; the rest as in Answer."""

    candidates: tuple[Candidates, ...]
    milliseconds: dict[str, float] = field(default_factory=dict)
    batch: int = 1
    cached_prompts: int = 0
    cached_image: bool = False


@dataclass(frozen=True)
class Failure:
    """Why there is none. kind: one of serve.failures'."""

    kind: str
    reason: str


class Filling:
    """How full a batch is that requests are added to, one by one."""

    def __init__(self, images: int, pairs: int):
        self._most_images, self._most_pairs = images, pairs
        self._images: set[bytes] = set()
        self._pairs: set[tuple[bytes, bytes]] = set()

    @property
    def full(self) -> bool:
        return len(self._pairs) >= self._most_pairs

    def add(self, inputs: Inputs) -> bool:
        """Whether it fitted in. The first one always does."""
        images = self._images | {inputs.digest}
        pairs = self._pairs | {(inputs.digest, key) for key in inputs.prompts}
        if self._images and (len(images) > self._most_images or len(pairs) > self._most_pairs):
            return False
        self._images, self._pairs = images, pairs
        return True
