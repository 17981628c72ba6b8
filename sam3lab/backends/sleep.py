"""A backend that does nothing for an exactly known time: what the harness itself costs shows against it."""

import time
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from sam3lab.backends.base import Artifacts, RawOutputs, gathered, total_bytes

QUERIES, CHANNELS = 4, 8


class SleepBackend:
    """Every stage busy-waits on the clock for `milliseconds` and gives small arrays that depend on nothing but shapes."""

    name: ClassVar[str] = "sleep"
    milliseconds: ClassVar[float] = 10.0

    @classmethod
    def unavailable(cls, device: str = "cpu", precision: str = "fp32") -> str | None:
        return None if device == "cpu" else "the sleep backend waits on a CPU; use device cpu"

    @classmethod
    def prepare(cls, artifacts: Artifacts) -> Artifacts:
        return artifacts

    def load(self, artifacts: Artifacts) -> None:
        self._grid = artifacts.resolution // 14

    def upload(self, array: np.ndarray) -> np.ndarray:
        return array

    def download(self, value: Any) -> Any:
        return value

    fetch = download

    def image(self, pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        end = self._end()
        maps = tuple(_wave(len(pixels), CHANNELS, k * self._grid, k * self._grid) for k in (4, 2, 1))
        return self._wait(end, maps)

    def text(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        end = self._end()
        return self._wait(end, _wave(*ids.shape, CHANNELS))

    def detect(self, features: Any, text: Any, mask: Any, image_index: np.ndarray, text_index: Any) -> RawOutputs:
        end = self._end()
        pairs, side = len(image_index), 4 * self._grid
        low = 0.25 + 0.2 * np.abs(_wave(pairs, QUERIES, 2))
        outputs = RawOutputs(
            logits=2 + _wave(pairs, QUERIES),
            presence=2 + _wave(pairs, 1),
            boxes=np.concatenate([low, low + 0.4], axis=-1),
            masks=_wave(pairs, QUERIES, side, side),
            semantic=_wave(pairs, 1, side, side),
        )
        return self._wait(end, outputs)

    def gather(self, parts: Sequence[tuple[Any, tuple[int, ...]]]) -> Any:
        return gathered(parts, lambda each: np.stack([value[index] for value, index in each]))

    def nbytes(self, value: Any) -> int:
        return total_bytes(value, lambda each: each.nbytes)

    def synchronize(self) -> None:
        pass

    def close(self) -> None:
        pass

    def _end(self) -> int:
        return time.perf_counter_ns() + int(self.milliseconds * 1e6)

    @staticmethod
    def _wait(end: int, result: Any) -> Any:
        # A real sleep would come back late by whatever the scheduler pleases.
        while time.perf_counter_ns() < end:
            pass
        return result


def _wave(*shape: int) -> np.ndarray:
    return np.sin(np.arange(np.prod(shape), dtype=np.float32)).reshape(shape)
