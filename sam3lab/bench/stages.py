"""The measured stages of one backend on one set of inputs, as calls without arguments."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sam3lab.backends.base import Backend, RawOutputs
from sam3lab.bench.inputs import Inputs

PARTS = ("image", "text", "detect")
STAGES = (*PARTS, "pipeline", "pipeline_cached", "end_to_end")
MASKS = 5  # that end_to_end makes of each pair


class Stages:
    """image, text and detect alone; pipeline, all three, or what the backend's own `pipeline` does; pipeline_cached,
    without text, whose features are reused.

    Inputs are uploaded here, so that these stages run from pixels on the device to raw outputs on the device.
    `features` and `embedded` are what detect alone and pipeline_cached work on, set from the first calls' results.
    """

    def __init__(self, backend: Backend, inputs: Inputs):
        self._backend, self._whole = backend, getattr(backend, "pipeline", None)
        self._text_mask = inputs.mask
        self._pixels, self._ids, self._mask, self._image_index, self._text_index = (
            backend.upload(array)
            for array in (inputs.pixels, inputs.ids, inputs.mask, inputs.image_index, inputs.text_index)
        )
        self.features: Any = None
        self.embedded: Any = None

    def image(self) -> Any:
        return self._backend.image(self._pixels)

    def text(self) -> Any:
        return self._backend.text(self._ids, self._mask)

    def detect(self) -> RawOutputs:
        return self._detect(self.features, self.embedded)

    def pipeline(self) -> RawOutputs:
        if self._whole is None:
            return self._detect(self.image(), self.text())
        return self._whole(self._pixels, self._ids, self._mask, self._image_index, self._text_index)

    def pipeline_cached(self) -> RawOutputs:
        return self._detect(self.image(), self.embedded)

    def _detect(self, features: Any, embedded: Any) -> RawOutputs:
        return self._backend.detect(features, embedded, self._mask, self._image_index, self._text_index)

    def outputs(self) -> dict[str, np.ndarray]:
        """Everything that parity compares, on the host: features_0 … (finest first), text, text_mask, raw outputs."""
        backend = self._backend
        features, embedded = self.image(), self.text()
        raw = self._detect(features, embedded) if self._whole is None else self.pipeline()
        raw = RawOutputs(*backend.download(raw))
        maps = backend.download(features)
        arrays = {f"features_{i}": array for i, array in enumerate(maps if isinstance(maps, tuple) else (maps,))}
        arrays["text"] = backend.download(embedded)
        arrays["text_mask"] = self._text_mask
        return arrays | raw._asdict()


def end_to_end(backend: Backend, inputs: Inputs, checkpoint: Path, prompts: list[str]) -> Callable[[], list[dict]]:
    """From JPEG bytes in memory to COCO results in host memory, as a service would: decode, resize, tokenise, upload,
    all stages, download of what is found, post-process, encode the masks. Importing what that needs happens here, not in
    the call.

    What is found are the best MASKS queries of each pair, whatever they score, so that there is as much to do for every
    checkpoint and precision: random weights find nothing, or everything.
    """
    from sam3lab import images
    from sam3lab.model.tokenizer import load_tokenizer
    from sam3lab.postprocess import at_image_size, chosen

    tokenizer = load_tokenizer(checkpoint)
    side = inputs.pixels.shape[-1]

    def run() -> list[dict]:
        photographs = [images.decode(data) for data in inputs.jpegs]
        pixels = np.stack([images.pixels(photograph, side) for photograph in photographs])
        # all of it first: an upload in between would wait for the stage before it
        given = (pixels, *tokenizer.encode(prompts), inputs.image_index, inputs.text_index)
        pixels, ids, mask, *indices = map(backend.upload, given)
        features, embedded = backend.image(pixels), backend.text(ids, mask)
        raw = backend.detect(features, embedded, mask, *indices)
        found = chosen(backend, raw, [-1.0] * len(inputs.image_index), MASKS)
        return [
            record
            for parts, image, prompt in zip(found, inputs.image_index, inputs.text_index, strict=True)
            for record in at_image_size(*parts, photographs[image].shape[:2]).to_coco(int(image), int(prompt) + 1)
        ]

    return run
