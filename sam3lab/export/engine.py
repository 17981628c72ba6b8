"""TensorRT engines of a set of graphs: built for this machine on first use, cached by all that they depend on.

An engine runs on the GPU model and with the TensorRT version that built it, and reading one can run code, so none is
read unless its SHA-256 is the one it was written with, and it was built for this machine.
"""

import ctypes
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sam3lab import install
from sam3lab.errors import UserError
from sam3lab.export import cache, engine_accumulation, engine_builder, manifest
from sam3lab.export.engine_builder import Options
from sam3lab.export.engine_progress import Progress
from sam3lab.export.onnx import INPUTS
from sam3lab.paths import cache_dir

# The graphs that each precision is built from. TensorRT 11 has no flag that lowers a precision; only TF32 is one.
GRAPHS = {"fp32": "fp32", "tf32": "fp32", "fp16": "fp16-mixed", "bf16": "bf16-mixed"}
NO_GPU = "no GPU"


def machine() -> dict[str, str]:
    """What an engine is bound to: TensorRT's version and its library's, the GPU, its compute capability and its driver.

    Raises UserError as `imported` does.
    """
    from sam3lab.nvml import gpu

    trt, graphics = imported(), gpu()
    facts = graphics.facts() if graphics else {}
    return {
        "tensorrt": trt.__version__,
        "tensorrt_library": str(library_version()),
        "gpu": facts.get("gpu") or NO_GPU,
        "gpu_capability": facts.get("gpu_capability") or NO_GPU,
        "gpu_driver": facts.get("gpu_driver") or NO_GPU,
    }


def imported() -> Any:
    """The module tensorrt. Raises UserError where it is not installed, or its libraries cannot be loaded."""
    try:
        import tensorrt
    except (ImportError, OSError) as error:
        raise UserError(f"TensorRT cannot be imported ({error}): {install.remedy('gpu')}") from error
    return tensorrt


def library_version() -> int | None:
    """The version that the loaded TensorRT library gives of itself, 110400 for 11.4.0; None if it cannot be asked."""
    import tensorrt as trt

    try:
        return ctypes.CDLL(f"libnvinfer.so.{trt.__version__.partition('.')[0]}").getInferLibVersion()
    except (OSError, AttributeError):
        return None


def builder_only() -> bool:
    """Whether the installed package can build engines but not run them: its bindings stand on TensorRT for RTX's library,
    which numbers its versions from 1. Raises UserError as `imported` does."""
    trt, version = imported(), library_version()
    return version is not None and version // 10000 != int(trt.__version__.partition(".")[0])


def engines(
    graphs: Path, precision: str, options: Options | None = None, timing: Path | None = None, shown: bool = False
) -> Path:
    """The directory of the three engines of a directory of graphs, with their manifest: built on first use, verified.

    precision: fp32, tf32, fp16 or bf16; the graphs must be those that GRAPHS names for it. timing: the timing cache's
    file, this machine's own where it is None. shown: whether progress is printed. Raises UserError for a precision that is
    not one of these, for graphs of another one or damaged ones, and as engine_builder.build does.
    """
    found = manifest.verify(graphs)
    if "tensorrt" in found:
        raise UserError(f"{graphs} holds engines already: give a directory of graphs")
    if precision not in GRAPHS:
        raise UserError(f"no engine is built in {precision}: {', '.join(GRAPHS)}")
    if found["precision"] != GRAPHS[precision]:
        raise UserError(
            f"{graphs} holds {found['precision']} graphs, and engines in {precision} are built from "
            f"{GRAPHS[precision]} ones: export them with --precision {GRAPHS[precision]}"
        )
    options = dataclasses.replace(options or Options(), tf32=precision == "tf32", wide_sums=precision == "fp16")
    here = machine()
    timing = timing or timing_cache(here)

    def make(work: Path) -> None:
        for stage, axes in INPUTS.items():
            title = f"{stage} at {found['resolution']}², {precision}"
            with Progress(title, shown) as progress:
                built = engine_builder.build(graphs / f"{stage}.onnx", axes, options, timing, progress)
            (work / f"{stage}.engine").write_bytes(built)
        about = {name: found[name] for name in ("checkpoint", "resolution", "opset")}
        build = {"graphs": hashes(found), "precision": precision, "options": dataclasses.asdict(options)}
        manifest.write(work, about | build | here)

    return cache.entry(cache_dir("engines") / key(found, here, options), make)


def key(graphs: Mapping[str, Any], here: Mapping[str, str], options: Options) -> str:
    """The name of a set of engines in the cache: a hash of the graphs' content, the machine, the options and the code."""
    modules = __file__, engine_builder.__file__, engine_accumulation.__file__
    sources = [Path(path).read_text() for path in modules]
    content = [hashes(graphs), dict(here), dataclasses.asdict(options), sources]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def hashes(graphs: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of every file in the manifest of a set of graphs."""
    return {name: entry["sha256"] for name, entry in graphs["files"].items()}


def timing_cache(here: Mapping[str, str]) -> Path:
    """The file of this machine's timing cache, which all its builds share."""
    name = "-".join([here["tensorrt"], here["gpu"], here["gpu_driver"]]).replace(" ", "_").replace("/", "_")
    return cache_dir("timings") / f"{name}.cache"


def is_engines(directory: Path) -> bool:
    """Whether a directory's manifest says that it holds engines, not graphs. Raises UserError for a damaged one."""
    return "tensorrt" in manifest.verify(directory)


def verify(directory: Path) -> dict[str, Any]:
    """The manifest of a directory of engines, every one of which is as it was written and was built for this machine.

    Raises UserError where that is not so; the engines must not be given to TensorRT then.
    """
    found, here = manifest.verify(directory), machine()
    remedy = "build them here: sam3lab build-engine"
    if "tensorrt" not in found:
        raise UserError(f"{directory} holds graphs, not engines: {remedy}")
    if found["gpu"] == NO_GPU:
        raise UserError(f"the engines in {directory} were built without a GPU, to see that they build: {remedy}")
    for name, what in (("tensorrt", "TensorRT"), ("gpu", "GPU"), ("gpu_capability", "compute capability")):
        if found[name] != here[name]:
            raise UserError(
                f"the engines in {directory} were built for the {what} {found[name]}, and this machine has "
                f"{here[name]}: {remedy}"
            )
    return found
