"""Backends that fail as they are told while they serve; a spec names them as "tests.serve_faults:Class".

What they do is in the file that the variable SAM3LAB_TEST_FAULT names, one of FAULTS, read at each call; nothing where it
is absent or empty. `die-on-load` and `no-load` concern the next start, the others the stages.
"""

import ctypes
import os
import time
from pathlib import Path

import numpy as np

from sam3lab.backends.base import RawOutputs
from sam3lab.backends.onnxruntime import OnnxRuntimeBackend
from sam3lab.backends.sleep import SleepBackend

VARIABLE = "SAM3LAB_TEST_FAULT"
FAULTS = ("memory", "memory-of-several", "device", "raise", "nan", "hang", "die", "die-on-load", "no-load", "slow")


def fault() -> str:
    try:
        return Path(os.environ[VARIABLE]).read_text().strip()
    except (KeyError, OSError):
        return ""


def hung() -> Path:
    """The file that is there once a worker hangs, as it was told to."""
    return Path(f"{os.environ[VARIABLE]}.hung")


class _Faults:
    """Put in front of a backend."""

    def load(self, artifacts):
        if fault() == "die-on-load":
            os._exit(3)
        if fault() == "no-load":
            raise RuntimeError("CUDA error: no CUDA-capable device is detected")
        super().load(artifacts)

    def detect(self, features, text, mask, image_index, text_index):
        kind, pairs = fault(), self.download(image_index).shape[0]
        if kind == "memory" or (kind == "memory-of-several" and pairs > 1):
            # as torch says it; the class is not imported, since a runtime's own has that name too
            raise type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 2.00 GiB")
        if kind == "device":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if kind == "raise":
            raise ValueError("something else")
        if kind == "hang":
            hung().touch()
            time.sleep(1000)
        if kind == "die":
            ctypes.string_at(0)
        if kind == "slow":
            time.sleep(0.5)
        outputs = super().detect(features, text, mask, image_index, text_index)
        if kind == "nan":
            outputs = outputs._replace(logits=outputs.logits * float("nan"))
        return outputs


class Quick(_Faults, SleepBackend):
    """A millisecond a stage; finds the same in every image."""

    name = "quick"
    milliseconds = 1.0


class Slow(_Faults, SleepBackend):
    """Fifty milliseconds a stage."""

    name = "slow"
    milliseconds = 50.0


class Real(_Faults, OnnxRuntimeBackend):
    """The real thing, until it is told otherwise."""

    name = "real"


class Steady(SleepBackend):
    """Never fails, whatever the file says."""

    name = "steady"
    milliseconds = 2.0


class Device(SleepBackend):
    """Takes its time without the processor, as a GPU does; finds ten things in every image, in half precision."""

    name = "device"
    _masks: np.ndarray | None = None

    def image(self, pixels):
        time.sleep(0.016 * len(pixels))
        return tuple(np.zeros((len(pixels), 8, side, side), np.float16) for side in (4, 2, 1))

    def text(self, ids, mask):
        time.sleep(0.001)
        return np.zeros((*ids.shape, 8), np.float16)

    def detect(self, features, text, mask, image_index, text_index):
        time.sleep(0.005 * len(image_index))
        count, side = len(image_index), 4 * self._grid
        if self._masks is None or len(self._masks) < count:
            self._masks = np.random.default_rng(0).normal(size=(count, 10, side, side)).astype(np.float16)
        box = np.tile(np.float32([0.2, 0.2, 0.6, 0.6]), (count, 10, 1))
        sure = np.full((count, 10), 3, np.float32)
        return RawOutputs(sure, np.full((count, 1), 5, np.float32), box, self._masks[:count], self._masks[:count, :1])


class Incomplete:
    """From before features could be gathered."""

    name = "incomplete"
    unavailable, prepare, load = SleepBackend.unavailable, SleepBackend.prepare, SleepBackend.load
    upload, download = SleepBackend.upload, SleepBackend.download
    image, text, detect = SleepBackend.image, SleepBackend.text, SleepBackend.detect
    synchronize, close = SleepBackend.synchronize, SleepBackend.close


class Remembers(Quick):
    """Writes the sizes of its calls to the file that SAM3LAB_TEST_CALLS names; compiles for each of them."""

    name = "remembers"
    compiles = True

    def _note(self, *what):
        with open(os.environ["SAM3LAB_TEST_CALLS"], "a") as file:
            print(*what, file=file)

    def image(self, pixels):
        self._note("image", len(pixels))
        return super().image(pixels)

    def text(self, ids, mask):
        self._note("text", len(ids))
        return super().text(ids, mask)

    def detect(self, features, text, mask, image_index, text_index):
        self._note("detect", len(features[0]), len(text), len(image_index))
        return super().detect(features, text, mask, image_index, text_index)
