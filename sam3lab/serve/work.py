"""What a request costs the server's own process, in threads of its own: decoding before the engine, masks after it."""

import asyncio
import concurrent.futures
import contextlib
import ctypes
import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import ParamSpec, TypeVar

import numpy as np

from sam3lab.postprocess import at_image_size, check_thresholds
from sam3lab.serve.request import Answer, Busy, Candidates, Late
from sam3lab.serve.schema import Cached, Instance, Segmentation

MAX_INSTANCES = 200  # in one answer
MAX_MASK_PIXELS = 400_000_000  # of one answer's masks together; of the largest images ten

LARGE = 4_000_000  # pixels; decoding fewer takes a tenth of a second at most
LARGE_WAITING = 16  # images of more than those that may wait to be decoded

P = ParamSpec("P")
T = TypeVar("T")


class Pool:
    """A few threads, and so many calls that may wait for one. To the next it says Busy at once; so it does to one that
    would have to wait, and is not expected to end within `patience` seconds.
    """

    def __init__(self, threads: int, waiting: int, name: str, patience: float = math.inf):
        self._threads = concurrent.futures.ThreadPoolExecutor(threads, name)
        self._count, self._most, self._patience = threads, threads + waiting, patience
        self._lock, self._calls, self._seconds = threading.Lock(), 0, 0.0

    @property
    def wait(self) -> float:
        """Seconds until a call that came now would begin, if all that are there take as long as the last one took."""
        return self._calls * self._seconds / self._count if self._calls >= self._count else 0.0

    async def run(self, function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """What the call returns or raises."""
        with self._lock:
            wait = self.wait
            if self._calls >= self._most or (wait and wait + self._seconds > self._patience):
                raise Busy("too many images wait to be decoded", wait)
            self._calls += 1
        try:
            call = self._threads.submit(self._timed, function, *arguments, **named)
        except BaseException:
            self._ended()
            raise
        call.add_done_callback(self._ended)  # which may be long after its caller has gone
        return await asyncio.wrap_future(call)

    def _timed(self, function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        begun = time.monotonic()
        try:
            return function(*arguments, **named)
        finally:
            self._seconds = time.monotonic() - begun

    def _ended(self, _: concurrent.futures.Future | None = None) -> None:
        with self._lock:
            self._calls -= 1

    def close(self) -> None:
        """Returns when the calls that run have ended; those that wait are dropped."""
        self._threads.shutdown(cancel_futures=True)


class LargePool(Pool):
    """One thread, for calls that take hundreds of megabytes each and leave none behind."""

    def __init__(self, waiting: int, name: str, patience: float = math.inf):
        super().__init__(1, waiting, name, patience)
        self._seconds = 2.0  # until the first one tells

    def _ended(self, call: concurrent.futures.Future | None = None) -> None:
        super()._ended(call)
        with contextlib.suppress(OSError, AttributeError, TypeError):  # of glibc, which keeps what was freed
            ctypes.CDLL(None).malloc_trim(0)


class Pools:
    """Where images are decoded, and masks encoded and drawn: one for the whole server, so that its bounds are the
    server's. The large ones, of which each takes seconds and up to a gigabyte, go one at a time and in no one else's
    way. What waits to be decoded has its file's bytes and no pixels.

    threads: images decoded at a time; waiting: how many more may wait; patience: seconds in which they must be decoded.
    """

    def __init__(self, threads: int, waiting: int, patience: float = math.inf):
        # What has been computed is not refused any more: the service's own queue bounds how much that is, and Gradio's
        # how much of it is drawn again.
        self.decode = (
            Pool(threads, waiting, "decode", patience),
            LargePool(LARGE_WAITING, "decode-large", patience),
        )
        self.encode = Pool(threads, 10_000, "encode"), LargePool(10_000, "encode-large")

    def decoding(self, pixels: int) -> Pool:
        return self.decode[pixels > LARGE]

    def encoding(self, pixels: int) -> Pool:
        return self.encode[pixels > LARGE]

    def close(self) -> None:
        for pool in (*self.decode, *self.encode):
            pool.close()


def segmentation(
    answer: Answer,
    threshold: float,
    mask_threshold: float,
    earlier: Mapping[str, float],
    begun: float,
    deadline: float,
    gone: threading.Event,
) -> Segmentation:
    """The answer with its masks at the image's size, encoded.

    Masks are made one at a time: those of a whole answer, at the size of a large photograph, would fill gigabytes. Where
    there are more than MAX_INSTANCES, or they have more than MAX_MASK_PIXELS, the lowest scores are left out.
    earlier: milliseconds of the steps before the engine's. begun, deadline: in time.monotonic()'s seconds. Raises Late at
    the deadline, and when nobody waits any more; UserError for a threshold outside 0..1.
    """
    check_thresholds(threshold, mask_threshold)
    began, (height, width) = time.monotonic(), answer.size
    found = [
        (prompt, candidate, float(candidates.scores[candidate]))
        for prompt, candidates in enumerate(answer.candidates)
        for candidate in np.flatnonzero(candidates.scores > threshold).tolist()
    ]
    most = min(MAX_INSTANCES, max(1, MAX_MASK_PIXELS // (height * width)))
    kept = sorted(sorted(found, key=lambda each: -each[2])[:most], key=lambda each: (each[0], -each[2]))
    instances = []
    for prompt, candidate, score in kept:
        if time.monotonic() > deadline or gone.is_set():
            raise Late("the masks were not ready in time; a higher threshold or a smaller image takes less")
        instances.append(_instance(answer, prompt, candidate, score, mask_threshold))
    ended = time.monotonic()
    after = {"postprocess": (ended - began) * 1000, "total": (ended - begun) * 1000}
    return Segmentation(
        prompts=list(answer.prompts),
        instances=instances,
        omitted=len(found) - len(kept),
        width=width,
        height=height,
        engine=answer.engine,
        reason=answer.reason,
        batch=answer.batch,
        cached=Cached(prompts=answer.cached_prompts, image=answer.cached_image),
        milliseconds={**earlier, **answer.milliseconds, **after},
    )


def warm_up() -> None:
    """Load what the first answer would wait for: PyTorch and pycocotools take a second or two."""
    one = Candidates(np.ones(1, np.float32), np.ones((1, 4), np.float32), np.ones((1, 8, 8), np.float16))
    answer = Answer(("warm",), (one,), (64, 64), "")
    segmentation(answer, 0.5, 0.5, {}, 0.0, math.inf, threading.Event())


def _instance(answer: Answer, prompt: int, candidate: int, score: float, mask_threshold: float) -> Instance:
    found, row = answer.candidates[prompt], slice(candidate, candidate + 1)
    one = at_image_size(found.scores[row], found.boxes[row], found.masks[row], answer.size, mask_threshold)
    return Instance(
        prompt=answer.prompts[prompt],
        score=score,
        box=one.boxes[0].tolist(),
        segmentation=one.rle()[0],
        area=int(np.count_nonzero(one.masks)),
    )
