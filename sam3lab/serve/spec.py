"""What a service is made of: which engines, and within what limits."""

import math
from dataclasses import dataclass, fields

from sam3lab.errors import UserError
from sam3lab.model.config import check_resolution


@dataclass(frozen=True)
class EngineSpec:
    """One engine: a backend with what it loads.

    backend: a runtime's name, or "module:Class". checkpoint: name or directory. resolution: image side in pixels, a
    multiple of 14; 0 for the checkpoint's own. threads: CPU threads of one call; 0 for every core. name: what it is
    called in answers, the backend's name where empty. ahead: batches that its worker is sent before it has ended the one
    that it computes, so that the device need not wait for them; -1: one on a GPU, and none on a CPU, whose cores have
    enough to do and where requests had better wait together. Raises UserError for what cannot be.
    """

    backend: str
    checkpoint: str = "sam3-nano"
    precision: str = "fp32"
    device: str = "cpu"
    resolution: int = 0
    threads: int = 0
    name: str = ""
    ahead: int = -1

    def __post_init__(self):
        if not self.name:
            object.__setattr__(self, "name", self.backend)
        if self.resolution:
            check_resolution(self.resolution)
        _check("threads", self.threads, 0, whole=True)
        _check("ahead", self.ahead, -1, whole=True)
        if self.ahead < 0:
            object.__setattr__(self, "ahead", 0 if self.device == "cpu" else 1)


@dataclass(frozen=True)
class Limits:
    """How much a service takes on. Times are seconds. Raises UserError for a number that makes no sense.

    queue             requests that may wait; one more is refused
    batching          whether requests that wait together are served together
    images, pairs     most images, and most image–prompt pairs, of one call; a request with more prompts takes several
    candidates        most instances of a prompt that an answer has; the best are kept
    fill              how long a batch waits to fill; 0: only what waits together is served together
    timeout           the longest that a request may ask to wait for its answer
    prompt_entries, prompt_bytes, image_entries, image_bytes
                      what an engine's caches of features hold on its device; no entries: no cache
    wait              expected wait for the first engine beyond which requests go to the fallback; 0: none is too long
    hang              how long a batch may take before its worker is taken to hang, and ended; ten times what the
                      largest batch is expected to take, where that is longer
    start             how long an engine may take to load; the first time, exports and compilation are part of it
    probe             pause between two trials of an engine that failed
    probes, recovery  trials in a row that it must pass, and the least time since it failed, before it is trusted again
    recovery_most     that time doubles for an engine that fails again soon after; this is the most it comes to
    """

    queue: int = 32
    batching: bool = True
    images: int = 4
    pairs: int = 8
    candidates: int = 200  # SAM 3's queries: all
    fill: float = 0.0
    timeout: float = 60.0
    prompt_entries: int = 1024
    prompt_bytes: int = 128 * 2**20
    image_entries: int = 16
    image_bytes: int = 2**30
    wait: float = 10.0
    hang: float = 15.0
    start: float = 3600.0
    probe: float = 0.5
    probes: int = 3
    recovery: float = 5.0
    recovery_most: float = 300.0

    def __post_init__(self):
        whole = {"queue": 1, "images": 1, "pairs": 1, "candidates": 1, "probes": 1}
        whole |= dict.fromkeys(("prompt_entries", "prompt_bytes", "image_entries", "image_bytes"), 0)
        for name, least in whole.items():
            _check(name, getattr(self, name), least, whole=True)
        for field in fields(self):
            if field.type is float:
                _check(field.name, getattr(self, field.name), 0, whole=False)
        for name in ("timeout", "hang", "start", "probe"):
            if not getattr(self, name):
                raise UserError(f"{name} must be more than 0 seconds")
        if self.recovery_most < self.recovery:
            raise UserError(
                f"recovery_most is {self.recovery_most:g} s: it cannot be less than recovery, {self.recovery:g} s"
            )


def _check(name: str, value: float, least: int, whole: bool) -> None:
    kinds = int if whole else int | float
    if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value) or value < least:
        raise UserError(f"{name} is {value!r}: give a {'whole ' * whole}number of at least {least}")
