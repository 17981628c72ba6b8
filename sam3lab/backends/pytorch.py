"""The lean model in PyTorch: eager, and compiled by TorchInductor."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sam3lab.backends.base import Artifacts, RawOutputs
from sam3lab.backends.torch_base import TorchBackend, no_compiler

SHAPES = 64  # sets of shapes that torch.compile may compile a stage for; beyond, it would run it uncompiled


class PyTorchBackend(TorchBackend):
    """The lean model's three modules, called as they are."""

    name = "pytorch"

    def load(self, artifacts: Artifacts) -> None:
        dtype = self.configure(artifacts)
        from sam3lab.model.checkpoint import load_model

        model = load_model(artifacts.checkpoint, artifacts.resolution, dtype, artifacts.device)
        self.stages = {"image": model.image_encoder, "text": model.text_encoder, "detect": model.detector}
        if artifacts.device == "cuda":
            import torch

            torch.cuda.empty_cache()  # graphs have pools of their own, which could not use what loading leaves

    def image(self, pixels: Any) -> Any:
        return self._run("image", pixels)

    def text(self, ids: Any, mask: Any) -> Any:
        return self._run("text", ids, mask)

    def detect(self, features: Any, text: Any, mask: Any, image_index: Any, text_index: Any) -> RawOutputs:
        return RawOutputs(*self._run("detect", *features, text, mask, image_index, text_index))

    def _run(self, stage: str, *values: Any) -> Any:
        import torch

        with torch.inference_mode():
            return self.stages[stage](*values)


class CompiledPyTorchBackend(PyTorchBackend):
    """The same modules through torch.compile, for the shapes it is first called with; on a GPU as CUDA graphs.

    There, a text stage that is called right after an image stage runs beside it, on a stream of its own; whatever is
    enqueued later waits for both.
    """

    name = "pytorch-compiled"
    compiles = True

    @classmethod
    def unavailable(cls, device: str = "cpu", precision: str = "fp32") -> str | None:
        return super().unavailable(device, precision) or no_compiler()

    def load(self, artifacts: Artifacts) -> None:
        import torch

        from sam3lab.model.layers import NarrowLinear

        super().load(artifacts)
        decoder = self.stages["detect"].decoder
        for network in (decoder.box_rpb_embed_x, decoder.box_rpb_embed_y):
            network.layer1 = NarrowLinear(network.layer1)
        torch._dynamo.config.recompile_limit = SHAPES
        self.stages = {name: torch.compile(stage, dynamic=False) for name, stage in self.stages.items()}
        if artifacts.device != "cuda":
            return
        from sam3lab.backends.torch_graphs import graphs

        streams = {name: torch.cuda.Stream() for name in self.stages}
        self.stages = {name: graphs(stage, streams[name]).run for name, stage in self.stages.items()}
        self._side, self._image_next = streams["text"], torch.cuda.Event()
        self._beside_image = False

    def upload(self, array: np.ndarray) -> Any:
        self._beside_image = False
        return super().upload(array)

    def image(self, pixels: Any) -> Any:
        if self.device.type == "cuda":
            self._image_next.record()
            self._beside_image = True
        return super().image(pixels)

    def text(self, ids: Any, mask: Any) -> Any:
        if self.device.type != "cuda":
            return super().text(ids, mask)
        import torch

        stream = torch.cuda.current_stream()
        if self._beside_image:
            self._side.wait_event(self._image_next)
        else:
            self._side.wait_stream(stream)
        with torch.cuda.stream(self._side):
            (features,) = self._run("text", ids, mask)
        stream.wait_stream(self._side)
        return features

    def detect(self, features: Any, text: Any, mask: Any, image_index: Any, text_index: Any) -> RawOutputs:
        self._beside_image = False
        return super().detect(features, text, mask, image_index, text_index)

    def gather(self, parts: Sequence[tuple[Any, tuple[int, ...]]]) -> Any:
        self._beside_image = False  # a text stage may overwrite what this is still to read
        return super().gather(parts)

    def _run(self, stage: str, *values: Any) -> Any:
        import torch

        with torch.no_grad():  # graphs keep tensors, and those of inference mode cannot be moved
            return self.stages[stage](*values)
