"""Writes a model repository: the three stages' models, the ensemble over them, and a README that says how to serve it."""

import os
import shutil
import tempfile
from pathlib import Path

from sam3lab.errors import UserError
from sam3lab.serve.triton import config, readme
from sam3lab.serve.triton.config import ENSEMBLE, FILES, model_name
from sam3lab.serve.triton.settings import Settings
from sam3lab.serve.triton.signature import IMAGES, PROMPTS, STAGES, Signature, of_checkpoint, of_graph

_MODEL = '''"""Written by sam3lab; what it is to run is in config.pbtxt."""

from sam3lab.serve.triton.python_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


def write(target: Path, settings: Settings) -> None:
    """Write the repository into `target`, whole or not at all.

    Raises UserError where the directory holds something, where what the models need cannot be made on this machine, and
    as export.cache.graphs and export.engine_builder.build do.
    """
    target = Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} is not an empty directory: name another one")
    config.protobuf()  # before anything that takes long
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        for name in (*map(model_name, STAGES), ENSEMBLE):
            (work / name / "1").mkdir(parents=True)  # the ensemble's stays empty, but Triton wants one
        make = {"onnxruntime": _onnxruntime, "tensorrt": _tensorrt, "python": _python}[settings.backend]
        signatures, made = make(work, settings)
        configs = [config.stage(stage, signature, settings) for stage, signature in signatures.items()]
        for each in (*configs, config.ensemble(signatures, settings)):
            (work / each.name / "config.pbtxt").write_text(config.text(each))
        (work / "README.md").write_text(readme.text(settings, signatures, made), encoding="utf-8")
        work.chmod(0o755)
        if target.exists():
            target.rmdir()
        os.rename(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _file(work: Path, stage: str, settings: Settings) -> Path:
    return work / model_name(stage) / "1" / FILES[settings.backend]


def _onnxruntime(work: Path, settings: Settings) -> tuple[dict[str, Signature], dict[str, str]]:
    from sam3lab.export import cache
    from sam3lab.export.onnx import ORT_CUDA, PORTABLE
    from sam3lab.serve.triton import graphs

    precision = "fp16" if settings.precision == "fp16" else "fp32"
    kind = ORT_CUDA if settings.device == "cuda" else PORTABLE
    source = cache.graphs(settings.checkpoint, settings.resolution, precision, target=kind)
    signatures = {}
    for stage in STAGES:
        graphs.write(source / f"{stage}.onnx", stage, _file(work, stage, settings))
        signatures[stage] = of_graph(_file(work, stage, settings))
    return signatures, {}


def _tensorrt(work: Path, settings: Settings) -> tuple[dict[str, Signature], dict[str, str]]:
    from sam3lab.export import cache, engine, engine_builder
    from sam3lab.export.engine_progress import Progress
    from sam3lab.serve.triton import graphs
    from sam3lab.serve.triton.signature import AXES

    here = engine.machine()  # raises where there is no TensorRT
    profile = {
        IMAGES: (1, max(1, settings.max_batch // 2), settings.max_batch),
        PROMPTS: (1, min(2, settings.max_prompts), settings.max_prompts),
    }
    options = engine_builder.Options(
        tf32=settings.precision == "tf32", wide_sums=settings.precision == "fp16", profiles=(profile,)
    )
    source = cache.graphs(settings.checkpoint, settings.resolution, engine.GRAPHS[settings.precision])
    signatures = {}
    for stage in STAGES:
        with tempfile.TemporaryDirectory(dir=work.parent) as folder:
            graph = Path(folder) / f"{stage}.onnx"
            graphs.write(source / f"{stage}.onnx", stage, graph)
            signatures[stage] = of_graph(graph)
            with Progress(f"{stage} at {settings.resolution}², {settings.precision}", shown=True) as progress:
                built = engine_builder.build(graph, AXES[stage], options, engine.timing_cache(here), progress)
        _file(work, stage, settings).write_bytes(built)
    return signatures, here


def _python(work: Path, settings: Settings) -> tuple[dict[str, Signature], dict[str, str]]:
    from sam3lab import backends
    from sam3lab.export import cache
    from sam3lab.model.checkpoint import FILES as CHECKPOINT

    shared = work / ENSEMBLE
    (shared / "checkpoint").mkdir()
    for path in sorted({path for pattern in CHECKPOINT for path in settings.checkpoint.glob(pattern)}):
        shutil.copyfile(path, shared / "checkpoint" / path.name)
    if settings.runtime != "pytorch":
        artifacts = backends.Artifacts(
            settings.checkpoint, settings.resolution, settings.precision, settings.device, settings.threads
        )
        cache.copy(backends.get(settings.runtime).prepare(artifacts).graphs, shared / "graphs")
    for stage in STAGES:
        _file(work, stage, settings).write_text(_MODEL)
    return of_checkpoint(settings.checkpoint, settings.resolution), {}
