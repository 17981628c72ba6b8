"""A batch through a backend's stages, with features kept from earlier ones. Runs in the worker process."""

import gc
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sam3lab.backends.base import Backend, RawOutputs
from sam3lab.bench.clock import now
from sam3lab.postprocess import chosen
from sam3lab.serve import failures
from sam3lab.serve.batch import Ask, Batch, Failure, Found, prompt_key
from sam3lab.serve.caches import LruCache
from sam3lab.serve.request import Candidates
from sam3lab.serve.sizes import Sizes

_HALF = 6e4  # about the greatest number of float16; what is beyond, as a logit, is as certain


@dataclass(frozen=True)
class Row:
    """One image's or prompt's features: a row of a value with `rows` of them."""

    value: Any
    row: int
    rows: int


@dataclass
class Kept:
    """What lasts from batch to batch: features, and counts of the stages' calls and of what went through them."""

    images: LruCache = field(default_factory=lambda: LruCache(0, 0))
    prompts: LruCache = field(default_factory=lambda: LruCache(0, 0))
    counts: Counter = field(default_factory=Counter)


class Computer:
    """Runs batches on a loaded backend. key: what cached features depend on, besides their image or prompt. most: how many
    candidates of a prompt are kept, best first.
    """

    def __init__(self, backend: Backend, sizes: Sizes, key: tuple, kept: Kept, most: int):
        self._backend, self._sizes, self._key, self._kept, self._most = backend, sizes, key, kept, most

    def run(self, batch: Batch) -> list[Found | Failure]:
        """An outcome for each request. Where memory runs out, features are let go and smaller batches tried."""
        try:
            return self._run(batch, self._sizes.pairs, self._kept)
        except Exception as error:  # a runtime raises whatever it pleases
            kind, reason = failures.classify(error), failures.describe(error)
        if kind != failures.MEMORY:
            return [Failure(kind, reason)] * len(batch.asks)
        self._give_back()
        count = len(batch.asks)
        if count > 1:
            return self.run(batch.part(0, count // 2)) + self.run(batch.part(count // 2, count))
        try:
            return self._run(batch, 1, self._kept)
        except Exception as error:
            return [Failure(failures.classify(error), failures.describe(error))]

    def trial(self, images: int, pairs: int, ids: np.ndarray, mask: np.ndarray, pixels: np.ndarray) -> float:
        """Seconds of a batch of that size made of one image and prompt, past the caches and the counts.

        ids, mask [1,32]; pixels uint8 [1,3,S,S]. Raises what the backend raises.
        """
        asks = tuple(Ask(pair % images, (pair,), 0.5) for pair in range(pairs))
        begin = now()
        self._run(
            Batch(((b"", pixels[0]),) * images, ids.repeat(pairs, 0), mask.repeat(pairs, 0), asks),
            self._sizes.pairs,
            Kept(),
        )
        return (now() - begin) / 1e9

    def counts(self) -> dict[str, int]:
        """Totals since the worker started, and what the caches hold now."""
        kept, found = self._kept, dict(self._kept.counts)
        for name, cache in (("image", kept.images), ("text", kept.prompts)):
            found |= {f"{name}_cache_{what}": getattr(cache, what) for what in ("hits", "misses", "evictions")}
            found |= {f"{name}_cache_entries": len(cache), f"{name}_cache_bytes": cache.nbytes}
        return found

    def _run(self, batch: Batch, most_pairs: int, kept: Kept) -> list[Found]:
        milliseconds, begin = {}, now()

        def lap(step: str) -> None:
            nonlocal begin
            self._backend.synchronize()
            milliseconds[step] = milliseconds.get(step, 0.0) + (now() - begin) / 1e6
            begin = now()

        images, known_images = self._encoded_images(batch, kept)
        lap("image")
        texts, known_texts = self._encoded_texts(batch, kept)
        lap("text")
        found: dict[tuple[int, int], Candidates] = {}
        for chunk in self._chunks(list(batch.pairs.items()), most_pairs):
            raw = self._detect(chunk, images, texts, batch.mask)
            lap("detect")
            found |= self._candidates(chunk, raw)
            del raw
            lap("download")
            kept.counts.update(detect_stage_calls=1, pairs_detected=len(chunk))
        return [
            Found(
                tuple(_above(found[ask.image, text], ask.floor) for text in ask.texts),
                milliseconds,
                len(batch.asks),
                sum(text in known_texts for text in ask.texts),
                ask.image in known_images,
            )
            for ask in batch.asks
        ]

    def _encoded_images(self, batch: Batch, kept: Kept) -> tuple[list[Row], set[int]]:
        """Features of each image, and which of them were there already."""
        keys = [(*self._key, digest) for digest, _ in batch.images]
        rows: dict[int, Row] = _known(kept.images, keys)
        known = set(rows)
        missing = [i for i in range(len(keys)) if i not in known]
        for chunk in _split(missing, self._sizes.images):
            size = self._sizes.image(len(chunk))
            pixels = np.stack([batch.images[i][1] for i in _filled(chunk, size)])
            value = self._backend.image(self._backend.upload(pixels))
            self._keep(kept.images, [keys[i] for i in chunk], value, size)
            rows |= {i: Row(value, row, size) for row, i in enumerate(chunk)}
            kept.counts.update(image_stage_calls=1, images_encoded=len(chunk))
        return [rows[i] for i in range(len(keys))], known

    def _encoded_texts(self, batch: Batch, kept: Kept) -> tuple[list[Row], set[int]]:
        """Features of each prompt, and which of them were there already."""
        keys = [(*self._key, prompt_key(*row)) for row in zip(batch.ids, batch.mask, strict=True)]
        rows: dict[int, Row] = _known(kept.prompts, keys)
        known = set(rows)
        missing = [i for i in range(len(keys)) if i not in known]
        for chunk in _split(missing, self._sizes.pairs):
            size = self._sizes.text(len(chunk))
            filled = _filled(chunk, size)
            value = self._backend.text(*map(self._backend.upload, (batch.ids[filled], batch.mask[filled])))
            self._keep(kept.prompts, [keys[i] for i in chunk], value, size)
            rows |= {i: Row(value, row, size) for row, i in enumerate(chunk)}
            kept.counts.update(text_stage_calls=1, prompts_encoded=len(chunk))
        return [rows[i] for i in range(len(keys))], known

    def _keep(self, cache: LruCache, keys: list[tuple], value: Any, rows: int) -> None:
        if not cache.on:
            return
        for row, key in enumerate(keys):
            # a copy of its own, so that it does not keep the others' memory
            own = value if rows == 1 else self._backend.gather([(value, (row,))])
            cache.put(key, own, self._backend.nbytes(own))

    def _chunks(self, pairs: list, most: int) -> list[list]:
        """Pairs in calls of at most `most`, and of no more images than a call may have."""
        chunks: list[list] = []
        images: set[int] = set()
        for pair in pairs:
            images = images | {pair[0][0]}
            if not chunks or len(chunks[-1]) >= most or len(images) > self._sizes.images:
                chunks.append([])
                images = {pair[0][0]}
            chunks[-1].append(pair)
        return chunks

    def _detect(self, chunk: list, images: list[Row], texts: list[Row], mask: np.ndarray) -> RawOutputs:
        wanted_images = list(dict.fromkeys(image for (image, _), _ in chunk))
        wanted_texts = list(dict.fromkeys(text for (_, text), _ in chunk))
        *sizes, pairs = self._sizes.detect(len(wanted_images), len(wanted_texts), len(chunk))
        features, image_rows = self._together([images[i] for i in wanted_images], sizes[0])
        words, text_rows = self._together([texts[i] for i in wanted_texts], sizes[1])
        masks = mask[wanted_texts[0]][None].repeat(words.rows, 0)
        masks[text_rows] = mask[wanted_texts]
        places = [
            (image_rows[wanted_images.index(image)], text_rows[wanted_texts.index(text)]) for (image, text), _ in chunk
        ]
        image_index, text_index = np.array(_filled(places, pairs), dtype=np.int64).T.copy()
        uploaded = map(self._backend.upload, (masks, image_index, text_index))
        return self._backend.detect(features.value, words.value, *uploaded)

    def _together(self, rows: list[Row], size: int) -> tuple[Row, list[int]]:
        """One value with all of these rows, and where in it they are; `size` rows where calls are padded."""
        first = rows[0]
        same = all(row.value is first.value for row in rows)
        if same and (first.rows == size or not self._sizes.padded):
            return first, [row.row for row in rows]
        value = self._backend.gather([(row.value, (row.row,)) for row in _filled(rows, size)])
        return Row(value, 0, size), list(range(len(rows)))

    def _candidates(self, chunk: list, raw: RawOutputs) -> dict[tuple[int, int], Candidates]:
        """Of each pair what scores above its floor, best first; only those masks leave the device."""
        found = chosen(self._backend, raw, [floor for _, floor in chunk], self._most)
        return {
            pair: Candidates(scores, boxes, _halved(masks))
            for (pair, _), (scores, boxes, masks) in zip(chunk, found, strict=True)
        }

    def _give_back(self) -> None:
        """All memory that can be spared, to whoever needs it."""
        self._kept.images.clear()
        self._kept.prompts.clear()
        self._kept.counts["memory_failures"] += 1
        gc.collect()
        if hasattr(self._backend, "give_back"):  # of memory of its own
            self._backend.give_back()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def _known(cache: LruCache, keys: Sequence[tuple]) -> dict[int, Row]:
    values = {i: cache.get(key) for i, key in enumerate(keys)}
    return {i: Row(value, 0, 1) for i, value in values.items() if value is not None}


def _split(items: list, most: int) -> list[list]:
    return [items[i : i + most] for i in range(0, len(items), most)]


def _filled(items: list, size: int) -> list:
    """Filled up to `size` with the first one."""
    return items + items[:1] * (size - len(items))


def _above(found: Candidates, floor: float) -> Candidates:
    count = int(np.count_nonzero(found.scores > floor))
    if count == len(found.scores):
        return found
    return Candidates(found.scores[:count], found.boxes[:count], found.masks[:count])


def _halved(masks: np.ndarray) -> np.ndarray:
    """Mask logits as float16. Raises RuntimeError where one is no finite number."""
    if masks.dtype == np.float16:
        # of what is infinite or no number all bits of the exponent are set; NumPy's isfinite takes ten times as long
        if ((masks.view(np.uint16) & 0x7C00) == 0x7C00).any():
            raise RuntimeError("its masks are not finite numbers")
        return masks
    halved = np.empty(masks.shape, np.float16)
    for mask, half in zip(masks, halved, strict=True):  # one at a time stays in the processor's cache
        if not np.isfinite(mask).all():
            raise RuntimeError("its masks are not finite numbers")
        half[...] = np.clip(mask, -_HALF, _HALF)
    return halved
