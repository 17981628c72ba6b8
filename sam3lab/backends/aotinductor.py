"""The lean model compiled ahead of time: AOTInductor's libraries, which a start loads in place of compiling again.

torch.compile keeps what its compiler made, but each process traces the model again to find that. A library of
AOTInductor needs neither: it is loaded, and given the weights, which it shares with the model and with all others.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sam3lab import atomic
from sam3lab.backends.base import Artifacts
from sam3lab.backends.pytorch import CompiledPyTorchBackend
from sam3lab.paths import cache_dir

_FILE = "stage.pt2"
_OPTIONS = {"aot_inductor.package_constants_in_so": False}  # weights stay the model's


class AheadPyTorchBackend(CompiledPyTorchBackend):
    """The modules of `pytorch-compiled`, from libraries: the first call of a set of shapes makes one, or finds it made."""

    name = "pytorch-aot"
    packages = ("torch", "setuptools")  # by which PyTorch finds the compiler

    @classmethod
    def unavailable(cls, device: str = "cpu", precision: str = "fp32") -> str | None:
        return super().unavailable(device, precision) or (no_toolkit() if device == "cuda" else None)

    def compiled(self, stages: dict[str, Any], artifacts: Artifacts) -> dict[str, Callable]:
        about = _about(artifacts)
        return {name: Libraries(stage, [name, *about]) for name, stage in stages.items()}


class Libraries:
    """A module as libraries, one for each set of its inputs' shapes, strides and types.

    about: what a library depends on besides those; JSON-ready. The weights are part of that: the compiler writes vectors of
    a few elements into the code.
    """

    def __init__(self, module: Any, about: list):
        self._module, self._about = module, about
        self._loaded: dict[tuple, Callable] = {}

    def __call__(self, *values: Any) -> Any:
        key = tuple((tuple(value.shape), value.stride(), str(value.dtype)) for value in values)
        if key not in self._loaded:
            self._loaded[key] = self._load(key, values)
        return self._loaded[key](*values)

    def _load(self, key: tuple, values: tuple) -> Callable:
        import torch

        name = hashlib.sha256(json.dumps([key, self._about]).encode()).hexdigest()[:24]
        place = atomic.folder(cache_dir("aotinductor") / name, lambda work: self._make(work, values))
        # single-threaded: with the locks of several runs at a time, it could not be captured as a CUDA graph
        library = torch._inductor.aoti_load_package(str(place / _FILE), run_single_threaded=True)
        weights = dict(self._module.named_parameters()) | dict(self._module.named_buffers())
        wanted = {constant: weights[constant] for constant in library.get_constant_fqns()}
        library.load_constants(wanted, check_full_update=True, user_managed=True)
        return library

    def _make(self, folder: Path, values: tuple) -> None:
        import torch

        with torch.no_grad():
            program = torch.export.export(self._module, values, strict=False)
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(folder / _FILE), inductor_configs=dict(_OPTIONS)
            )


def no_toolkit() -> str | None:
    """Why no library can be made for a GPU, with the remedy, or None."""
    from torch.utils.cpp_extension import CUDA_HOME

    if CUDA_HOME and (Path(CUDA_HOME) / "include" / "cuda.h").exists():
        return None
    return "AOTInductor needs the CUDA toolkit to make libraries: install it, or name its folder in CUDA_HOME"


def _about(artifacts: Artifacts) -> list:
    """What decides the libraries of a model, but for the shapes of inputs."""
    import torch

    from sam3lab import model
    from sam3lab.model.checkpoint import fingerprint

    sources = [path.read_text() for path in sorted(Path(model.__file__).parent.glob("*.py"))]
    about = [fingerprint(artifacts.checkpoint), sources, artifacts.resolution, artifacts.precision]
    about += [torch.__version__, sorted(_OPTIONS.items())]
    if artifacts.device == "cuda":
        return [*about, torch.cuda.get_device_name(), torch.cuda.get_device_capability(), torch.version.cuda]
    # what is compiled for a CPU has the number of its threads in it
    return [*about, torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()]
