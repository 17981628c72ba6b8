"""What is asked of an engine, what it answers, and how it says no."""

import math
from dataclasses import dataclass, field

import numpy as np

from sam3lab.postprocess import Detections, at_image_size, check_thresholds

FLOOR = 0.05  # candidates that score less are not kept, whatever threshold is asked for first


@dataclass(frozen=True)
class Request:
    """Find what each of `prompts` names in `photograph`, uint8 [H,W,3], upright.

    score_threshold: the least score that will be asked of the answer, which keeps candidates down to it or to FLOOR,
    whichever is less. engine: the name of one of the service's engines, or empty for its own choice. timeout: seconds
    after which the answer is of no use any more, from when the request is submitted.
    """

    photograph: np.ndarray
    prompts: tuple[str, ...]
    score_threshold: float = 0.5
    engine: str = ""
    timeout: float = 30.0


@dataclass(frozen=True)
class Candidates:
    """What one prompt may have found, highest score first, at the model's own size: a threshold can still be moved.

    scores float32 [k] in 0..1; boxes float32 [k,4], x0 y0 x1 y1 in units of the image's sides; masks float16 [k,h,w],
    logits.
    """

    scores: np.ndarray
    boxes: np.ndarray
    masks: np.ndarray


@dataclass(frozen=True)
class Answer:
    """Candidates of each prompt, in their order.

    size: the photograph's (H, W). engine: the name of the engine that answered; reason: why not the first one, or empty.
    milliseconds: wall time by step, in order: "queue", "preprocess", "image", "text", "detect", … of the batch that the
    request was in. batch: how many requests were in it. cached: how many of the prompts' text features, and whether the
    image features, were there already.
    """

    prompts: tuple[str, ...]
    candidates: tuple[Candidates, ...]
    size: tuple[int, int]
    engine: str
    reason: str = ""
    milliseconds: dict[str, float] = field(default_factory=dict)
    batch: int = 1
    cached_prompts: int = 0
    cached_image: bool = False

    def detections(self, score_threshold: float = 0.5, mask_threshold: float = 0.5) -> list[tuple[str, Detections]]:
        """(prompt, its objects with masks at the photograph's size), as sam3lab.postprocess.detections gives them.

        No model runs. Raises UserError for a threshold outside 0..1.
        """
        check_thresholds(score_threshold, mask_threshold)
        found = []
        for prompt, each in zip(self.prompts, self.candidates, strict=True):
            kept = each.scores > score_threshold
            parts = each.scores[kept], each.boxes[kept], each.masks[kept]
            found.append((prompt, at_image_size(*parts, self.size, mask_threshold)))
        return found


class ServiceError(Exception):
    """A request that was right, and was not answered. The message says what is wrong; retry_after: the seconds after
    which the same request may be answered, None where it would fare no better.
    """

    def __init__(self, message: str, retry_after: float | None = 1.0):
        super().__init__(message)
        self.retry_after = retry_after

    @property
    def seconds(self) -> int | None:
        """`retry_after` as people and programs are told it: whole, and at least one."""
        return None if self.retry_after is None else max(1, math.ceil(self.retry_after))


class Busy(ServiceError):
    """The queue is full."""


class Late(ServiceError):
    """The request's time ran out before it was answered."""


class WorkerLost(ServiceError):
    """The process that held the request died."""


class NotReady(ServiceError):
    """No engine is there that could answer: still starting, or all of them failing."""
