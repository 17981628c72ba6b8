"""`sam3lab doctor --graph`: where ONNX Runtime runs each node of a checkpoint's graphs, and what takes the time.

The sessions are the backend's own, optimised and bound as it does it, with ONNX Runtime's profiler on: what is told is
the graph that is executed, after every fusion, with the copies between host and device (Memcpy) that no exporter wrote.
CUDA graphs are off, since a replayed node is not seen, and CUDA is told to wait for each kernel, since its time would
else be that of its launch alone: the sum over the nodes is more than the stage takes.
"""

import argparse
import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from sam3lab.errors import UserError

RUNS = 5  # the first, in which memory is taken and kernels are chosen, does not count
_COPIES = ("MemcpyToHost", "MemcpyFromHost")
_SHOWN = 12


@dataclass(frozen=True)
class Node:
    """A node of the executed graph of a stage: name, operator, provider, milliseconds (median), shapes of its inputs."""

    stage: str
    name: str
    operator: str
    provider: str
    milliseconds: float
    inputs: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `sam3lab doctor` that say whose graphs are looked into."""
    add = parser.add_argument
    add("--graph", action="store_true", help="where ONNX Runtime runs each node of a checkpoint, and how long")
    # no defaults here: without --graph none may be given
    add("--checkpoint", help="with --graph: name or directory (default: sam3-nano)")
    add("--precision", help="with --graph: default: fp32")
    add("--resolution", type=int, help="with --graph: pixels (default: the checkpoint's own)")
    add("--device", choices=("cpu", "cuda"), help="with --graph: default: cuda where there is a GPU, else cpu")


def report(console, args: argparse.Namespace) -> None:
    """Print the nodes of each stage by provider, by operator and, the slowest, one by one. Raises UserError as `profile`."""
    from rich.table import Table

    from sam3lab.bench.case import Case
    from sam3lab.model import checkpoint
    from sam3lab.nvml import gpu

    device = args.device or ("cuda" if gpu() else "cpu")
    name, resolution = args.checkpoint or "sam3-nano", args.resolution
    if resolution is None:
        resolution = checkpoint.image_size(checkpoint.resolve(name))
    case = Case(name, "onnxruntime", args.precision or "fp32", resolution, device=device)
    nodes = profile(case)
    for stage in dict.fromkeys(node.stage for node in nodes):
        own = [node for node in nodes if node.stage == stage]
        whole = sum(node.milliseconds for node in own)
        console.print(f"\n[bold]{stage}[/bold]: {len(own)} nodes, {whole:.2f} ms one after another")
        for line in elsewhere(own, device):
            console.print(f"  {line}", highlight=False, markup=False)
        for title, rows in (("By operator", by_operator(own)), ("Slowest nodes", slowest(own))):
            table = Table(title=title, title_justify="left")
            for name in rows[0]:
                numeric = name in ("nodes", "ms", "share")
                table.add_column(name, justify="right" if numeric else "left", overflow="fold")
            for row in rows:
                table.add_row(*map(str, row.values()))
            console.print(table)


def profile(case, runs: int = RUNS) -> list[Node]:
    """Every node that ONNX Runtime executes for an "onnxruntime" case, in order; its graphs are exported on first use.

    On "cuda" this process must not have used CUDA before. Raises UserError where this machine cannot run the case.
    """
    from sam3lab import backends
    from sam3lab.bench.inputs import build
    from sam3lab.bench.stages import Stages
    from sam3lab.cores import available_cores
    from sam3lab.model import checkpoint

    if case.device == "cuda":
        os.environ["CUDA_LAUNCH_BLOCKING"] = "1"
    kind = backends.get(case.backend)
    if reason := kind.unavailable(case.device, case.precision):
        raise UserError(f"ONNX Runtime cannot run {case.precision} on {case.device}: {reason}")
    directory = checkpoint.resolve(case.checkpoint)
    threads = case.threads or available_cores()
    wanted = backends.Artifacts(directory, case.resolution, case.precision, case.device, threads)
    inputs = build(case, directory)
    backend, found = kind(), []
    with tempfile.TemporaryDirectory() as folder, _profiled(Path(folder)) as sessions:
        backend.load(kind.prepare(wanted))
        stages = Stages(backend, inputs)
        for _ in range(runs):
            stages.features, stages.embedded = stages.image(), stages.text()
            stages.detect()
            backend.synchronize()
        for stage, session in sessions:
            found += read(stage, Path(session.end_profiling()))
        backend.close()
    return found


def read(stage: str, path: Path) -> list[Node]:
    """The nodes in a profile that ONNX Runtime wrote, in the order of their first run, which is left out of the medians."""
    times, about = defaultdict(list), {}
    for event in json.loads(path.read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            # what fusion makes of several nodes may bear the same name several times
            key = event["name"].removesuffix("_kernel_time"), event["args"].get("node_index")
            times[key].append(event["dur"] / 1000)
            about.setdefault(key, event["args"])
    return [
        Node(
            stage,
            key[0],
            arguments["op_name"],
            arguments["provider"],
            median(times[key][1:] or times[key]),
            _shapes(arguments.get("input_type_shape", [])),
        )
        for key, arguments in about.items()
    ]


def elsewhere(nodes: Sequence[Node], device: str) -> list[str]:
    """What is not on the device, a line for each provider, and the copies between the two; or that there is nothing."""
    home = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device]
    lines = []
    for provider in sorted({node.provider for node in nodes} - {home}):
        lines.append(f"on {provider}: {_counted([node for node in nodes if node.provider == provider])}")
    if copies := [node for node in nodes if node.operator in _COPIES]:
        lines.append(f"copies between host and device: {_counted(copies)}")
    return lines or [f"every node is on {home}, and none copies between host and device"]


def by_operator(nodes: Sequence[Node]) -> list[dict[str, Any]]:
    """operator, provider, nodes, ms, share of the stage, slowest first; the last row holds what is not shown."""
    groups = defaultdict(list)
    for node in nodes:
        groups[node.operator, node.provider].append(node.milliseconds)
    whole = sum(node.milliseconds for node in nodes) or 1.0
    ranked = sorted(groups.items(), key=lambda item: -sum(item[1]))
    if len(ranked) > _SHOWN:
        rest = [milliseconds for _, times in ranked[_SHOWN:] for milliseconds in times]
        ranked = [*ranked[:_SHOWN], ((f"{len(ranked) - _SHOWN} others", ""), rest)]
    return [
        {"operator": operator, "provider": provider, "nodes": len(times)}
        | {"ms": f"{sum(times):.3f}", "share": f"{100 * sum(times) / whole:.1f}%"}
        for (operator, provider), times in ranked
    ]


def slowest(nodes: Sequence[Node]) -> list[dict[str, Any]]:
    """node, operator, ms and inputs of the nodes that take longest."""
    ranked = sorted(nodes, key=lambda node: -node.milliseconds)[:_SHOWN]
    return [
        {"node": node.name, "operator": node.operator, "ms": f"{node.milliseconds:.3f}", "inputs": node.inputs}
        for node in ranked
    ]


@contextmanager
def _profiled(folder: Path) -> Iterator[list[tuple[str, Any]]]:
    """Within, every session that is made writes a profile; gives the (stage, session) of those that were made."""
    import onnxruntime as ort

    made, own = [], ort.InferenceSession

    class Profiled(own):
        def __init__(self, path, sess_options=None, providers=None, **others):
            options = sess_options or ort.SessionOptions()
            options.enable_profiling = True
            options.profile_file_prefix = str(folder / Path(path).stem)
            super().__init__(path, options, providers=[_without_capture(each) for each in providers or ()], **others)
            made.append((Path(path).stem, self))

    ort.InferenceSession = Profiled
    try:
        yield made
    finally:
        ort.InferenceSession = own


def _without_capture(provider: Any) -> Any:
    if isinstance(provider, tuple):
        name, options = provider
        return name, {key: value for key, value in options.items() if key != "enable_cuda_graph"}
    return provider


def _counted(nodes: Sequence[Node]) -> str:
    counts = defaultdict(int)
    for node in nodes:
        counts[node.operator] += 1
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return f"{len(nodes)} nodes ({', '.join(f'{count} {operator}' for operator, count in ranked)})"


def _shapes(inputs: Sequence[dict[str, Sequence[int]]]) -> str:
    """ "float16[1,5184,1024] …" of [{"float16": [1, 5184, 1024]}, …]."""
    return " ".join(
        f"{kind}{json.dumps(shape, separators=(',', ':'))}" for each in inputs for kind, shape in each.items()
    )
