"""Exported graphs, cached by what they are made of."""

import hashlib
import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sam3lab import atomic
from sam3lab.errors import UserError
from sam3lab.export import manifest
from sam3lab.model.checkpoint import fingerprint
from sam3lab.model.config import check_resolution
from sam3lab.paths import cache_dir

FOR_ORT_CUDA = (  # what only that target's graphs depend on
    *(f"onnxruntime_cuda{part}.py" for part in ("", "_detector", "_neck", "_nodes")),
    "fused_norms.py",
    "fused_products.py",
)


def graphs(
    checkpoint: Path, resolution: int, precision: str, opset: int | None = None, target: str | None = None
) -> Path:
    """The directory of the ONNX graphs of a checkpoint, exported on first use, verified each time.

    The key is the content of the checkpoint, the resolution, precision, opset and target, the exporter's versions and the
    source of the model and the export. A damaged entry is refused, never used; the error says to delete it.
    """
    from sam3lab.export import onnx

    check_resolution(resolution)
    opset, target = onnx.OPSET if opset is None else opset, target or onnx.PORTABLE
    model = Path(__file__).parents[1] / "model"
    sources = [path.read_text() for path in (*sorted(model.glob("*.py")), Path(onnx.__file__))]
    parts = ["mixed.py"] * (precision in onnx.MIXED) + [*FOR_ORT_CUDA] * (target == onnx.ORT_CUDA)
    sources += [Path(onnx.__file__).with_name(part).read_text() for part in parts]
    versions = {name: version(name) for name in ("torch", "onnx", "onnxscript")}
    content = [fingerprint(checkpoint), resolution, precision, opset, target, versions, sources]
    place = cache_dir("graphs") / hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]
    return entry(place, lambda work: onnx.export(checkpoint, work, resolution, precision, opset, target))


def entry(target: Path, make: Callable[[Path], Any]) -> Path:
    """`target`, which `make` fills, given an empty directory beside it, unless it is there; verified each time."""
    manifest.verify(atomic.folder(target, make), f"delete {target}, and it is made again")
    return target


def exported(artifacts, precision: str, target: str = "portable") -> Path:
    """The graphs in that precision and for that target for a backend's `Artifacts`: its own directory, verified, or the
    cached ones.

    Cached int8 graphs are calibrated on training scenes, see export.calibration. Raises UserError where its own directory was exported from or for something else.
    """
    if artifacts.graphs is None and precision == "int8":
        from sam3lab.export import calibration, quantize

        samples = calibration.samples(artifacts.checkpoint, artifacts.resolution)
        return quantize.graphs(artifacts.checkpoint, artifacts.resolution, samples)
    if artifacts.graphs is None:
        return graphs(artifacts.checkpoint, artifacts.resolution, precision, target=target)
    found = manifest.verify(artifacts.graphs)
    wanted = {
        "checkpoint": fingerprint(artifacts.checkpoint),
        "resolution": artifacts.resolution,
        "precision": precision,
        "target": target,
    }
    for key, value in wanted.items():
        if found.get(key) != value:
            raise UserError(f"{artifacts.graphs} was exported for {key} {found.get(key)}, not {value}: export it anew")
    return artifacts.graphs


def copy(source: Path, target: Path) -> bool:
    """Copy verified graphs into a user's directory; False if it held the same ones already.

    Raises UserError where the directory holds anything else: nothing of the user's is overwritten.
    """
    if (target / manifest.NAME).exists():
        if manifest.verify(target) == manifest.verify(source):
            return False
        raise UserError(f"{target} holds another export: name an empty directory")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} is not an empty directory: name another one")
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(
        source.iterdir(), key=lambda p: p.name == manifest.NAME
    ):  # the manifest last: it vouches for all
        shutil.copyfile(path, target / path.name)
    return True
