"""`sam3lab build-engine`: TensorRT engines, asked for in trtexec's words where these still mean something."""

import argparse
import re
from pathlib import Path

from sam3lab.errors import UserError

_UNITS = {"B": 1, "K": 2**10, "M": 2**20, "G": 2**30}
_PRECISIONS = ("fp32", "tf32", "fp16", "bf16")

# trtexec's flags that mean nothing here, and what to give instead.
_TYPED = "TensorRT 11 takes every precision from the graph: give --precision {}"
_QUANTISED = "TensorRT 11 takes every precision from the graph, and no {} graph of the model suits it: give --precision"
_MEASURES = "building measures nothing: give it to `sam3lab measure --backend tensorrt`, which warms up and repeats"
_OWN_OPTIONS = (
    "The commands run engines of the default options alone; those of others run from Python, where "
    "backends.Artifacts.graphs names their directory"
)
_REPLACED = {
    "--fp16": _TYPED.format("fp16"),
    "--bf16": _TYPED.format("bf16"),
    "--noTF32": _TYPED.format("fp32, which is without TF32 (tf32 is with it)"),
    "--int8": _QUANTISED.format("INT8"),
    "--fp8": _QUANTISED.format("FP8"),
    "--int4": _QUANTISED.format("INT4"),
    "--best": _TYPED.format("fp16"),
    "--stronglyTyped": "every network is strongly typed in TensorRT 11: leave it out",
    "--explicitBatch": "every network has explicit batches: leave it out",
    "--calib": _QUANTISED.format("INT8"),
    "--workspace": "it was replaced by --memPoolSize=workspace:SIZE",
    "--maxBatch": "batches are explicit: give --maxShapes",
    "--batch": "batches are explicit: give --optShapes",
    "--shapes": "engines take ranges of shapes: give --optShapes",
    "--buildOnly": "nothing but building is done: leave it out",
    "--skipInference": "nothing but building is done: leave it out",
    "--loadEngine": "building runs nothing: `sam3lab measure --backend tensorrt` does. " + _OWN_OPTIONS,
    "--warmUp": _MEASURES,
    "--warmUpDuration": _MEASURES,  # the article's; trtexec never had it
    "--duration": _MEASURES,
    "--iterations": _MEASURES,
    "--avgRuns": _MEASURES,
    "--useCudaGraph": "a CUDA graph is always used when engines run: leave it out",
    "--useSpinWait": _MEASURES,
    "--noDataTransfers": _MEASURES,
    "--infStreams": _MEASURES,
    "--loadInputs": _MEASURES,
    "--exportTimes": _MEASURES,
    "--dumpProfile": _MEASURES,
    "--plugins": "this model needs no plugin: leave it out",
    "--staticPlugins": "this model needs no plugin: leave it out",
    "--useDLACore": "engines are built for the GPU: leave it out",
}


class _Replaced(argparse.Action):
    """Remembers that a flag was given which `run` refuses."""

    def __call__(self, parser, namespace, values, option_string=None):
        namespace.replaced = [*namespace.replaced, option_string]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--onnx", type=Path, metavar="DIR", help="graphs that `sam3lab export` wrote")
    parser.add_argument("--checkpoint", help="or what to export first: facebook/sam3, sam3, sam3-nano, a directory …")
    parser.add_argument("--resolution", help="with --checkpoint: image side, or several (504,1008,1512), each a set")
    parser.add_argument("--precision", choices=_PRECISIONS, help="default: the graphs' own, or fp16 with --checkpoint")
    parser.add_argument("--saveEngine", type=Path, metavar="DIR", help="where the engines go beside the cache")
    parser.add_argument("--memPoolSize", metavar="workspace:SIZE", help="scratch memory, like workspace:2G")
    for which, what in (("min", "least"), ("opt", "usual"), ("max", "greatest")):
        parser.add_argument(f"--{which}Shapes", metavar="SHAPES", help=f"{what}, like images:4,prompts:2,pairs:8")
    parser.add_argument("--timingCacheFile", type=Path, metavar="FILE", help="default: one a GPU, in the cache")
    parser.add_argument("--builderOptimizationLevel", type=int, default=3, metavar="0-5", help="default: 3")
    parser.set_defaults(replaced=[])
    for flag in _REPLACED:
        parser.add_argument(flag, nargs="?", action=_Replaced, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Build (or find in the cache), copy where asked; prints what lies where."""
    if args.replaced:
        raise UserError("; ".join(f"{flag}: {_REPLACED[flag]}" for flag in dict.fromkeys(args.replaced)))
    workspace = None if args.memPoolSize is None else parse_pool(args.memPoolSize)
    checkpoint, precision, resolutions = _wanted(args)
    from sam3lab.export import cache, engine, engine_profiles, manifest
    from sam3lab.export.engine_builder import Options

    options = {}
    for resolution in resolutions:  # all of them before the first is built, since that may take long
        profiles = engine_profiles.parse(args.minShapes, args.optShapes, args.maxShapes, resolution)
        options[resolution] = Options(workspace=workspace, level=args.builderOptimizationLevel, profiles=profiles)
    engine.machine()
    for resolution in resolutions:
        graphs = args.onnx or cache.graphs(checkpoint, resolution, engine.GRAPHS[precision])
        directory = engine.engines(graphs, precision, options[resolution], args.timingCacheFile, shown=True)
        if args.saveEngine is not None:
            target = args.saveEngine / str(resolution) if len(resolutions) > 1 else args.saveEngine
            cache.copy(directory, target)
            directory = target
        facts = manifest.verify(directory)
        print(f"{precision} at {resolution}², TensorRT {facts['tensorrt']}, {facts['gpu']}")
        for name, entry in facts["files"].items():
            print(f"  {directory / name}  {entry['bytes'] / 1e6:.1f} MB  sha256 {entry['sha256'][:12]}")
        if facts["gpu"] == engine.NO_GPU:
            print("  built without a GPU: they show that the graphs build, and are run nowhere")
        elif options[resolution] != Options():
            print(f"  {_OWN_OPTIONS}")
    return 0


def parse_pool(text: str) -> int:
    """Bytes of trtexec's --memPoolSize=workspace:2G; a number alone counts MiB, as there. Raises UserError otherwise."""
    found = re.fullmatch(r"(\w+):(\d+(?:\.\d+)?)([BKMG]?)", text)
    if not found:
        raise UserError(f"--memPoolSize {text!r} is no pool and size: write workspace:2G")
    pool, size, unit = found.groups()
    if pool != "workspace":
        raise UserError(f"--memPoolSize {text!r}: the builder's only pool here is workspace")
    return int(float(size) * _UNITS[unit or "M"])


def _wanted(args: argparse.Namespace) -> tuple[Path | None, str, list[int]]:
    """(checkpoint to export or None where there are graphs, precision, resolutions)."""
    from sam3lab.export import engine, manifest

    if (args.onnx is None) == (args.checkpoint is None):
        raise UserError("give either --onnx with a directory of graphs, or --checkpoint to export first")
    if args.onnx is not None:
        if args.resolution:
            raise UserError("--resolution belongs to --checkpoint: graphs have their own")
        if args.onnx.is_file():
            raise UserError(f"{args.onnx} is one graph of three: give their directory, {args.onnx.parent}")
        facts = manifest.verify(args.onnx)
        natural = next((name for name, graphs in engine.GRAPHS.items() if graphs == facts["precision"]), None)
        return None, args.precision or natural or facts["precision"], [facts["resolution"]]
    from sam3lab.model.checkpoint import image_size, resolve

    checkpoint = resolve(args.checkpoint)
    return checkpoint, args.precision or "fp16", _resolutions(args.resolution) or [image_size(checkpoint)]


def _resolutions(text: str | None) -> list[int]:
    from sam3lab.model.config import check_resolution

    try:
        return [check_resolution(int(part)) for part in text.split(",")] if text else []
    except ValueError:
        raise UserError(f"--resolution {text!r} is no list of numbers: write 504,1008,1512") from None
