"""What a backend is: the one interface through which the harness sees every runtime."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np


@dataclass(frozen=True)
class Artifacts:
    """What a backend loads, all of it on disk before `load` is called.

    checkpoint: directory in facebook/sam3's format. resolution: image side in pixels, a multiple of 14.
    precision: fp32 (TF32 off), tf32, bf16, fp16, int8 or fp8. device: "cpu" or "cuda".
    threads: CPU threads for one call; 0 means every core the process may use.
    graphs: directory of exported graphs with their manifest, for backends that read them.
    """

    checkpoint: Path
    resolution: int
    precision: str = "fp32"
    device: str = "cpu"
    threads: int = 0
    graphs: Path | None = None


class RawOutputs(NamedTuple):
    """What the detector gives for N image–prompt pairs, Q queries and a mask grid of 4 × the patch grid g.

    logits [N,Q] and presence [N,1] before the sigmoid, boxes [N,Q,4] as x1 y1 x2 y2 in units of the image's sides,
    masks [N,Q,4g,4g] and semantic [N,1,4g,4g] as logits.
    """

    logits: Any
    presence: Any
    boxes: Any
    masks: Any
    semantic: Any


class Backend(Protocol):
    """One runtime. Values between the stages are the backend's own and stay on its device.

    Stage calls enqueue work and may return before it is done; `synchronize` waits. A backend holds no clock. One whose
    users call something else than its three stages in a row has it as `pipeline(pixels, ids, mask, image_index,
    text_index)`, which gives RawOutputs and is then what the stage of that name measures and parity compares. One that
    compiles in its first call has a true attribute `compiles`: such a call is made before anything is measured. One that
    keeps memory for later calls frees it in `give_back()`, which a service calls when there is none left.
    """

    name: ClassVar[str]

    @classmethod
    def unavailable(cls, device: str = "cpu", precision: str = "fp32") -> str | None:
        """Why this machine cannot run it on that device in that precision, with the remedy; None if it can."""

    @classmethod
    def prepare(cls, artifacts: Artifacts) -> Artifacts:
        """Build what `load` reads (graphs, engines), cached by content. Never timed as loading."""

    def load(self, artifacts: Artifacts) -> None:
        """Make the model ready to run from what is on disk."""

    def upload(self, array: np.ndarray) -> Any:
        """A host array as a value on the backend's device."""

    def download(self, value: Any) -> Any:
        """A value, or a tuple of values, as NumPy arrays on the host; floating-point ones as float32."""

    def fetch(self, value: Any) -> np.ndarray:
        """As `download` of a single value, but in the type that it has on the device, where NumPy knows that."""

    def image(self, pixels: Any) -> Any:
        """Features of uint8 pixels [B,3,S,S]: three maps [B,C,4g,4g], [B,C,2g,2g], [B,C,g,g]."""

    def text(self, ids: Any, mask: Any) -> Any:
        """Text features [P,32,C] of token ids int64 [P,32] and mask bool [P,32] (True for tokens, False for padding)."""

    def detect(self, features: Any, text: Any, mask: Any, image_index: Any, text_index: Any) -> RawOutputs:
        """Detections for the N pairs (image_index[n], text_index[n]), both int64 [N]; mask bool [P,32] as for text."""

    def gather(self, parts: Sequence[tuple[Any, tuple[int, ...]]]) -> Any:
        """The parts value[index] of each (value, index), stacked along a new first axis, in memory of its own.

        index: whole numbers into the leading axes. Values are what image and text gave, or a field of RawOutputs; all
        have the same shape behind the axes that are indexed. Features of several calls so become one batch.
        """

    def nbytes(self, value: Any) -> int:
        """How much memory a value takes on the backend's device."""

    def synchronize(self) -> None:
        """Wait for all enqueued work."""

    def close(self) -> None:
        """Give back memory and handles; the backend is not used again."""


def gathered(parts: Sequence[tuple[Any, tuple[int, ...]]], stack: Callable[[Sequence], Any]) -> Any:
    """`gather` of a backend whose `stack` does it for single values; of tuples of them it makes a tuple."""
    if not isinstance(parts[0][0], tuple):
        return stack(parts)
    members = range(len(parts[0][0]))
    return tuple(gathered([(value[member], index) for value, index in parts], stack) for member in members)


def total_bytes(value: Any, size: Callable[[Any], int]) -> int:
    """`nbytes` of a backend whose `size` tells it of single values; of tuples of them it is their sum."""
    return sum(total_bytes(each, size) for each in value) if isinstance(value, tuple) else size(value)
