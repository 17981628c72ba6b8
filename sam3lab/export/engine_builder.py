"""One graph to one serialised engine, with TensorRT's builder and ONNX parser."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sam3lab import atomic
from sam3lab.errors import UserError
from sam3lab.export import engine_accumulation, engine_profiles
from sam3lab.export.engine_profiles import PROFILES, Profile
from sam3lab.export.engine_progress import Progress, monitor

Axes = Mapping[str, str | Sequence[str]]


@dataclass(frozen=True)
class Options:
    """What the builder is told. tf32: whether float32 products may be computed in TF32. wide_sums: whether float16 products
    are summed in float32 (see engine_accumulation). workspace: bytes of scratch memory that a layer may use, None for all
    that the device has. level: the builder's optimisation level, 0 to 5, higher searches longer. profiles: the sizes that
    the engines take.
    """

    tf32: bool = False
    wide_sums: bool = False
    workspace: int | None = None
    level: int = 3
    profiles: tuple[Profile, ...] = PROFILES

    def __post_init__(self):
        if not 0 <= self.level <= 5:
            raise UserError(f"the builder's optimisation level goes from 0 to 5, not {self.level}")
        if self.workspace is not None and self.workspace < 1:
            raise UserError(f"a workspace of {self.workspace} bytes leaves the builder no kernel: give more, like 2G")
        for profile in self.profiles:
            engine_profiles.check(profile)


@cache
def logger():
    """The process's tensorrt.ILogger: TensorRT keeps the first it is given. Its `errors` hold the latest error messages."""
    import tensorrt as trt

    class Log(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity, message):
            if severity <= trt.ILogger.ERROR:
                self.errors = [*self.errors[-9:], " ".join(message.split())]

    return Log()


def last_error() -> str:
    """What TensorRT last complained of, for once: it is no reason of what fails later."""
    log = logger()
    said, log.errors = log.errors, []
    return said[-1] if said else "it gives no reason"


def build(
    graph: Path,
    axes: Axes,
    options: Options,
    timing: Path | None = None,
    progress: Progress | None = None,
) -> Any:
    """The engine of an ONNX graph as TensorRT serialises it, a tensorrt.IHostMemory (a buffer of bytes).

    axes: for each input the name of its first axis, or the names of its first ones where several are open. timing: file
    of the timing cache, read where it is there, written afterwards. Ctrl-C stops the build at the builder's next step and
    is then raised as ever. Raises UserError where the graph is not taken, or where no engine comes of it.
    """
    progress = progress or Progress(graph.stem, shown=False)
    with ThreadPoolExecutor(1) as worker:  # so that this thread stays free for Ctrl-C
        answer = worker.submit(_build, graph, axes, options, timing, progress)
        try:
            return answer.result()
        except KeyboardInterrupt:
            progress.cancel()
            raise


def _build(graph: Path, axes: Axes, options: Options, timing: Path | None, progress: Progress):
    import tensorrt as trt

    log = logger()
    log.errors = []
    try:
        builder = trt.Builder(log)
    except TypeError:  # what its bindings make of a null pointer
        raise UserError(f"TensorRT's builder does not start here: {last_error()}") from None
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)  # the network's weights are its own: it must outlive the build
    _parse(parser, graph, options.wide_sums)
    for layer in map(network.get_layer, range(network.num_layers)):
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True  # float32 and narrow heads have no fused kernel, and are else refused

    config = builder.create_builder_config()
    config.builder_optimization_level = options.level
    (config.set_flag if options.tf32 else config.clear_flag)(trt.BuilderFlag.TF32)
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    for profile in options.profiles:
        _add_profile(builder, config, network, axes, profile)
    if timing is not None:
        config.set_flag(trt.BuilderFlag.EDITABLE_TIMING_CACHE)
        known = load_timings(config, timing)
    observer = config.progress_monitor = monitor(progress)
    engine = builder.build_serialized_network(network, config)
    del observer, parser
    if timing is not None:
        timings = config.get_timing_cache()
        anew = not known and timing.exists() and timings.queryKeys()
        try:
            atomic.write(timing, timings.serialize())  # another build may read it meanwhile
        except OSError as error:  # an engine is worth more
            progress.say(f"the timings were not kept: {timing} cannot be written: {error.strerror or error}")
        else:
            if anew:
                progress.say(f"{timing} held no timings of this GPU and this TensorRT, and was written anew")
    if engine is None:
        why = "it was cancelled" if progress.cancelled else last_error()
        raise UserError(f"TensorRT made no engine of {graph}: {why}")
    return engine


def _parse(parser, graph: Path, wide_sums: bool) -> None:
    taken = parser.parse(engine_accumulation.in_float32(graph)) if wide_sums else parser.parse_from_file(str(graph))
    if not taken:
        error = parser.get_error(0)
        place = f"node {error.node_name()} ({error.node_operator()})" if error.node_name() else "the file"
        raise UserError(f"TensorRT does not take {graph}, because of {place}: {' '.join(error.desc().split())}")


def _add_profile(builder, config, network, axes: Axes, sizes: Profile) -> None:
    profile = builder.create_optimization_profile()
    for tensor in map(network.get_input, range(network.num_inputs)):
        names = axes[tensor.name]
        names = [names] if isinstance(names, str) else names
        rest = list(tensor.shape)[len(names) :]
        profile.set_shape(tensor.name, *((*rows, *rest) for rows in zip(*(sizes[name] for name in names), strict=True)))
    if config.add_optimization_profile(profile) < 0:
        raise UserError(f"TensorRT refuses the profile {sizes}: {last_error()}")


def load_timings(config, path: Path) -> bool:
    """Give a builder's configuration the timing cache in a file, or an empty one; whether the file's timings count. Those
    of another GPU or TensorRT do not: they would be wrong here.
    """
    timings = config.create_timing_cache(path.read_bytes() if path.exists() else b"")
    if config.set_timing_cache(timings, False):
        return bool(timings.queryKeys())
    config.set_timing_cache(config.create_timing_cache(b""), False)
    return False
