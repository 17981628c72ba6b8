"""The runtimes, one file each. Asking for one imports it and nothing else."""

import importlib
import os
import sys

from sam3lab.backends.base import Artifacts, Backend, RawOutputs
from sam3lab.errors import UserError

__all__ = ["Artifacts", "Backend", "RawOutputs", "get", "names"]

_PLACES = {
    "transformers": "sam3lab.backends.transformers:TransformersBackend",
    "pytorch": "sam3lab.backends.pytorch:PyTorchBackend",
    "pytorch-compiled": "sam3lab.backends.pytorch:CompiledPyTorchBackend",
    "onnxruntime": "sam3lab.backends.onnxruntime:OnnxRuntimeBackend",
    "tensorrt": "sam3lab.backends.tensorrt:TensorRtBackend",
    "openvino": "sam3lab.backends.openvino:OpenVinoBackend",
    "meta": "sam3lab.backends.meta:MetaBackend",
    "meta-compiled": "sam3lab.backends.meta:CompiledMetaBackend",
}
# Others that can be asked for by name, but stand in no comparison of runtimes.
_OTHERS = {
    "transformers-geometry": "sam3lab.backends.meta:TransformersGeometryBackend",
    "onnxruntime-unoptimised": "sam3lab.backends.onnxruntime:Unoptimised",
    "onnxruntime-basic": "sam3lab.backends.onnxruntime:Basic",
    "onnxruntime-extended": "sam3lab.backends.onnxruntime:Extended",
    "sleep": "sam3lab.backends.sleep:SleepBackend",
}


# What every use of a backend takes; serving takes more, and says so itself.
_MEASURED = ("unavailable", "prepare", "load", "upload", "download", "image", "text", "detect", "synchronize", "close")


def names() -> list[str]:
    """The names of the runtimes that are compared, reference first."""
    return list(_PLACES)


def get(name: str) -> type[Backend]:
    """The backend class of that name, or at "module:Class" for one from outside the package, whose module may lie in
    the working directory.

    Raises UserError where there is none.
    """
    place = _PLACES.get(name) or _OTHERS.get(name) or name
    module, _, attribute = place.partition(":")
    if not attribute:
        raise UserError(f"no backend is named {name!r}; known: {', '.join(names())}; or give module:Class")
    if place == name and (folder := os.getcwd()) not in sys.path:
        sys.path.append(folder)  # last, where nothing of it is taken for a library
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever a module of the user's raises
        if place != name and not isinstance(error, ImportError | AttributeError):
            raise
        raise UserError(f"backend {name!r} could not be imported from {module}: {error}") from error
    if absent := [each for each in _MEASURED if not hasattr(found, each)]:
        raise UserError(f"{name} is no backend: it lacks {', '.join(absent)}, see sam3lab.backends.base.Backend")
    return found
