"""The lean model in PyTorch: eager, and compiled by TorchInductor."""

import shutil
from typing import Any

from sam3lab.backends.base import Artifacts, RawOutputs
from sam3lab.backends.torch_base import TorchBackend


class PyTorchBackend(TorchBackend):
    """The lean model's three modules, called as they are."""

    name = "pytorch"

    def load(self, artifacts: Artifacts) -> None:
        dtype = self.configure(artifacts)
        from sam3lab.model.checkpoint import load_model

        model = load_model(artifacts.checkpoint, artifacts.resolution, dtype, artifacts.device)
        self.stages = {"image": model.image_encoder, "text": model.text_encoder, "detect": model.detector}

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
    """The same modules through torch.compile, for the shapes it is first called with."""

    name = "pytorch-compiled"

    @classmethod
    def unavailable(cls, device: str = "cpu", precision: str = "fp32") -> str | None:
        reason = super().unavailable(device, precision)
        if reason is None and not any(shutil.which(name) for name in ("g++", "c++", "clang++")):
            reason = "torch.compile needs a C++ compiler: install g++"
        return reason

    def load(self, artifacts: Artifacts) -> None:
        import torch

        super().load(artifacts)
        self.stages = {name: torch.compile(stage, dynamic=False) for name, stage in self.stages.items()}
