"""What the backends that run in PyTorch share: device, numerics, copies."""

import importlib.util
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np

from sam3lab import install
from sam3lab.backends.base import Artifacts, gathered, total_bytes
from sam3lab.cores import available_cores

DTYPES = {"fp32": "float32", "tf32": "float32", "bf16": "bfloat16", "fp16": "float16"}
PRECISIONS = {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "tf32", "bf16", "fp16")}


def unsupported(device: str, precision: str, precisions: dict[str, tuple[str, ...]]) -> str | None:
    """Why a backend that knows these precisions for each device cannot run one of them, or None."""
    if device not in precisions:
        return f"it runs on {' or '.join(precisions)}, not on {device!r}"
    if precision not in precisions[device]:
        return f"precision {precision} is not one it computes on {device}: {', '.join(precisions[device])}"
    return None


def missing(*modules: str) -> str | None:
    """Which of these modules cannot be imported, with the remedy, or None. Imports none of them."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            extras = ("gpu",) if module in ("tensorrt", "pycuda") else ("cpu", "gpu")
            return f"the package {module} is not installed: {install.remedy(*extras)}"
    return None


def no_gpu(runtime: str) -> str | None:
    """Why a runtime that needs an NVIDIA GPU cannot run, with the remedy, or None where there is one."""
    from sam3lab.nvml import gpu

    if gpu() is not None:
        return None
    return f"no NVIDIA GPU is to be seen: {runtime} needs one, its driver and the package nvidia-ml-py"


def no_compiler() -> str | None:
    """Why torch.compile cannot work here, with the remedy, or None."""
    if any(shutil.which(name) for name in ("g++", "c++", "clang++")):
        return None
    return "torch.compile needs a C++ compiler: install g++"


class TorchBackend:
    """Base of the backends whose values are torch tensors. Subclasses load a model and compute the stages."""

    packages: tuple[str, ...] = ("torch",)

    @classmethod
    def unavailable(cls, device: str = "cpu", precision: str = "fp32") -> str | None:
        reason = missing(*cls.packages) or unsupported(device, precision, PRECISIONS)
        if reason is None and device == "cuda":
            import torch

            if not torch.cuda.is_available():
                reason = "PyTorch sees no CUDA device: it needs an NVIDIA GPU, its driver and a CUDA build of torch"
        return reason

    @classmethod
    def prepare(cls, artifacts: Artifacts) -> Artifacts:
        return artifacts

    def configure(self, artifacts: Artifacts) -> Any:
        """Set threads and numerics for this process; returns the torch dtype of the precision."""
        import torch

        torch.set_num_threads(artifacts.threads or available_cores())
        tf32 = artifacts.precision == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        self.device = torch.device(artifacts.device)
        return getattr(torch, DTYPES[artifacts.precision])

    def upload(self, array: np.ndarray) -> Any:
        import torch

        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def download(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(self.download(part) for part in value)
        value = value.float() if value.is_floating_point() else value
        return value.cpu().numpy()

    def fetch(self, value: Any) -> np.ndarray:
        import torch

        return (value.float() if value.dtype == torch.bfloat16 else value).cpu().numpy()

    def gather(self, parts: Sequence[tuple[Any, tuple[int, ...]]]) -> Any:
        import torch

        return gathered(parts, lambda each: torch.stack([value[index] for value, index in each]))

    def nbytes(self, value: Any) -> int:
        return total_bytes(value, lambda each: each.nbytes)

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            import torch

            torch.cuda.synchronize(self.device)

    def close(self) -> None:
        self.__dict__.clear()
