"""One case, one round, in a process of its own: `python -m sam3lab.bench.worker JOB.json SPAWNED_NS`.

The job names the case, what to load, the inputs, how many samples to take, and where measurements and raw outputs go.
Samples stay in memory until all is measured. Nothing here imports torch or a runtime before the backend does itself;
end_to_end, whose host side needs torch, comes last. A cold case makes what it loads itself, in caches
that are empty. An accuracy case is `predict`'s.
"""

import time

_ENTERED = time.perf_counter_ns()

import gc  # noqa: E402 (the clock is read before anything else is imported)
import json  # noqa: E402
import math  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable  # noqa: E402
from contextlib import nullcontext  # noqa: E402
from dataclasses import replace  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402

from sam3lab import backends, nvml  # noqa: E402
from sam3lab.bench import artifacts, child, cold, memory  # noqa: E402
from sam3lab.bench.case import Case  # noqa: E402
from sam3lab.bench.clock import Clock, CudaEvents, now, steady, warm_up  # noqa: E402
from sam3lab.bench.gpu_monitor import GpuMonitor  # noqa: E402
from sam3lab.bench.host_speed import HostSpeed  # noqa: E402
from sam3lab.bench.inputs import Inputs  # noqa: E402
from sam3lab.bench.stages import PARTS, Stages, end_to_end  # noqa: E402

_HEAVY = ("torch", "transformers", "onnxruntime", "openvino", "tensorrt", "pandas", "scipy")


def main(job_file: str, spawned: str) -> None:
    """Measure, then write {"measurements": […], "facts": {…}} to the job's `out`; any failure ends the process."""
    job = json.loads(Path(job_file).read_text())
    child.tie_to_parent(job["parent"])
    case = Case.from_json(job["case"])
    if case.mode == "accuracy":
        from sam3lab.bench import predict

        Path(job["out"]).write_text(json.dumps(predict.answer(case, job)))
        return
    out, loads = Path(job["out"]), artifacts.from_json(job["artifacts"])
    worker = _Worker(case, int(spawned), job["host_look_ms"])
    with cold.empty_caches(out.parent) if case.mode == "cold" else nullcontext():
        worker.make_ready(loads)
        worker.load(loads)
        worker.first(Inputs.load(Path(job["inputs"])))
        if case.mode not in ("reference", "cold"):
            worker.steady(job["samples"], job["seconds"])
        if case.mode == "speed":
            worker.end_to_end(Path(job["artifacts"]["checkpoint"]), job["samples"], job["seconds"])
        if job["outputs"]:
            np.savez(job["outputs"], inputs=np.array(worker.inputs.digest), **worker.stages.outputs())
        worker.backend.close()
    measurements = [] if case.mode == "reference" else worker.measurements
    out.write_text(json.dumps({"measurements": measurements, "facts": worker.facts()}))


class _Worker:
    """The phases in their order. `measurements` has one entry a series: stage, phase, metric, unit, values."""

    def __init__(self, case: Case, spawned: int, host_look: float | None = None):
        self._case, self._spawned, self._cold = case, spawned, case.mode == "cold"
        self.measurements: list[dict[str, Any]] = []
        self._facts: dict[str, Any] = {}
        # a CPU that computes is slowed in what it computes too, and ratios of interleaved rounds allow for that
        self._host = HostSpeed(host_look) if case.device == "cuda" else None
        self._began = now()

    def make_ready(self, loads: artifacts.Artifacts) -> None:
        """What measuring needs before it begins; its time is not start-up's, nor is that of emptying caches."""
        graphics = nvml.gpu() if self._case.device == "cuda" else None
        self._gpu = memory.GpuMemory(graphics)
        self._monitor = GpuMonitor(graphics) if graphics else None
        if self._cold:
            files = sorted(path for path in loads.checkpoint.iterdir() if path.is_file())
            before = cold.resident(files)
            cold.forget_pages(files)
            self._facts["page_cache"] = {"before": before, "after": cold.resident(files)}
        self._aside = now() - self._began

    def load(self, loads: artifacts.Artifacts) -> None:
        kind = backends.get(self._case.backend)
        self._process("process_start", _ENTERED - self._spawned)
        self._process("import", now() - _ENTERED - self._aside)
        if self._cold:
            loads = self._prepare(kind, replace(loads, graphs=None))
        begin = now()
        self.backend = kind()
        self.backend.load(loads)
        self.backend.synchronize()
        self._process("load", now() - begin)
        self._rss_loaded, self._gpu_loaded = memory.rss(), self._gpu.read()
        self._facts["threads"] = loads.threads

    def first(self, inputs: Inputs) -> None:
        """The first call of each part, in order: together the first pipeline. Start-up ends with its outputs on the host."""
        self.inputs = inputs
        # A backend with a stream of its own names it, since events see only the stream that they are recorded on.
        events = CudaEvents(getattr(self.backend, "stream", None) or 0) if self._case.device == "cuda" else None
        self._clock = Clock(self.backend.synchronize, events)
        self.stages = Stages(self.backend, inputs)
        _tell("first calls")
        begin = now()
        self.stages.features = self._first("image", self.stages.image)
        self.stages.embedded = self._first("text", self.stages.text)
        raw = self._first("detect", self.stages.detect)
        end = now()
        self.backend.download(tuple(raw))
        self._process("startup", now() - self._spawned - self._aside)
        if self._cold:
            self._process("first", end - begin)
        else:
            self._add("pipeline", "first", "wall", "ms", [(end - begin) / 1e6])
        self._facts |= _torch_facts()

    def steady(self, samples: int, seconds: float) -> None:
        """Warm-up and steady state of the stages of the model, and memory."""
        at_startup = memory.rss_peak()
        gc.freeze()  # what is loaded stays: the collections between the stages need not go through it again
        self._facts["rss_peak_was_reset"] = memory.reset_rss_peak()
        # the pipeline comes first, and memory is read after it: what a user runs, and alike in every mode, since a stage
        # that is called alone has graphs, and with them memory, of its own
        self._steady("pipeline", self.stages.pipeline, samples, seconds)
        readings = {"rss": self._rss_loaded, "rss_peak_startup": at_startup, "rss_peak": memory.rss_peak()}
        if self._gpu_loaded is not None:
            readings |= {"gpu": self._gpu_loaded, "gpu_peak": self._gpu.peak}
        for metric, value in (readings | memory.torch_peaks()).items():
            self._add("process", "memory", metric, "MB", [value])
        for stage in () if self._case.mode == "pipeline" else (*PARTS, "pipeline_cached"):
            self._steady(stage, getattr(self.stages, stage), samples, seconds)
        self._facts["imported"] = [name for name in _HEAVY if name in sys.modules]

    def end_to_end(self, checkpoint: Path, samples: int, seconds: float) -> None:
        call = end_to_end(self.backend, self.inputs, checkpoint, list(self._case.prompts))
        _tell("first end_to_end")
        made = self._first("end_to_end", call)
        self._add("end_to_end", "steady", "masks", "1", [len(made)])
        self._steady("end_to_end", call, samples, seconds)

    def facts(self) -> dict[str, Any]:
        """How it was measured."""
        facts = {"inputs": self.inputs.digest, "gpu_memory_source": self._gpu.source} | self._facts
        facts |= self._monitor.facts() if self._monitor else {}
        if self._host and self._host.fastest < math.inf:
            facts["host_look_ms"] = round(self._host.fastest, 4)
        return facts

    def _prepare(self, kind: type[backends.Backend], wanted: artifacts.Artifacts) -> artifacts.Artifacts:
        _tell("prepare")
        wall, begin = time.time(), now()
        made = kind.prepare(wanted)
        took, exported = (now() - begin) / 1e9, cold.last_export()
        export = 0.0 if exported is None else min(max(exported - wall, 0.0), took)
        for metric, seconds in (("prepare", took), ("export", export), ("build", took - export)):
            self._add("process", "cold", metric, "s", [seconds])
        return made

    def _first(self, stage: str, call: Callable[[], Any]) -> Any:
        result, wall, event = self._clock.time(call)
        if not self._cold:
            self._series(stage, "first", [wall], [] if event is None else [event])
        return result

    def _steady(self, stage: str, call: Callable[[], Any], samples: int, seconds: float) -> None:
        _tell(stage)
        warm = warm_up(self._clock, call, seconds=seconds / 2)  # at most half of what it prepares
        self._series(stage, "warmup", warm.wall, warm.event)
        monitor = self._monitor if stage == "pipeline" else None  # of what an image takes as a whole
        taken = steady(self._clock, call, samples, seconds, monitor, self._host)
        if monitor:  # while the thread is where it was measured
            monitor.finish(lambda: self._clock.time(call))
            for metric, unit, value in monitor.values(self._case.batch):
                self._add(stage, "steady", metric, unit, [value])
        if self._host:
            taken, disturbed = taken.parted(self._host.disturbed(len(taken.wall), samples))
            if disturbed.wall:
                self._series(stage, "disturbed", disturbed.wall, disturbed.event)
            self._add(stage, "steady", "slowed", "1", [self._host.slowed])
        self._series(stage, "steady", taken.wall, taken.event)
        self._gpu.read()

    def _series(self, stage: str, phase: str, wall: list[int], event: list[float]) -> None:
        self._add(stage, phase, "wall", "ms", [nanoseconds / 1e6 for nanoseconds in wall])
        if event:
            self._add(stage, phase, "cuda_event", "ms", event)

    def _process(self, metric: str, nanoseconds: int) -> None:
        self._add("process", "cold" if self._cold else "load", metric, "s", [nanoseconds / 1e9])

    def _add(self, stage: str, phase: str, metric: str, unit: str, values: list[float]) -> None:
        entry = {"stage": stage, "phase": phase, "metric": metric, "unit": unit, "values": values}
        self.measurements.append(entry)


def _tell(what: str) -> None:
    """To the log, so that it shows where a worker was when it crashed or hung; never inside a timed region."""
    print(what, file=sys.stderr, flush=True)


def _torch_facts() -> dict[str, Any]:
    """How torch computed, where it was used."""
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    return {
        "torch_threads": torch.get_num_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_allow_tf32": torch.backends.cudnn.allow_tf32,
    }


if __name__ == "__main__":
    child.guard(main, *sys.argv[1:])
