"""A request as an engine's model takes it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sam3lab import images
from sam3lab.model.tokenizer import load_tokenizer
from sam3lab.serve.batch import Inputs, digest


class Preprocessor:
    """For a checkpoint and a resolution. Runs in the server's threads, several at a time."""

    def __init__(self, checkpoint: Path, resolution: int):
        self._tokenizer, self._resolution = load_tokenizer(checkpoint), resolution

    def inputs(self, photograph: np.ndarray, prompts: Sequence[str]) -> Inputs:
        """Of a photograph uint8 [H,W,3] and what to find in it. Raises UserError for what cannot be either."""
        ids, mask = self._tokenizer.encode(prompts)
        pixels = images.pixels(photograph, self._resolution)
        return Inputs(pixels, digest(pixels), ids, mask)
