"""What the machine can do at most, and what the harness itself costs: the scale that every other number is read on.

As a process: `python -m sam3lab.bench.ceilings JOB.json SPAWNED_NS`, so that the libraries have the threads that they
have in a worker, and nothing of them stays behind in a notebook, on the GPU least of all.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sam3lab import nvml
from sam3lab.bench import child, process
from sam3lab.bench.clock import Clock, steady, warm_up
from sam3lab.bench.statistics import Estimate, in_blocks, median_ci
from sam3lab.cores import available_cores

COLUMNS = ["ceiling", "precision", "value", "low", "high", "unit", "size", "samples", "library"]
_TIMEOUT = 600.0


def ceilings(device: str = "cpu", threads: int = 0, seconds: float = 0.3) -> pd.DataFrame:
    """Copy bandwidth and matrix-product rates of a device, measured in a process of its own; COLUMNS, one row each.

    copy: GB/s (10^9 bytes), bytes read and bytes written both counted, of a buffer far larger than the caches.
    matmul: GFLOP/s of a square product, 2n³ operations; fp32 (TF32 off), on "cuda" also tf32, bf16 and fp16, on a CPU
    bf16 where it has instructions for it. size: bytes copied, or n. library: whose rate it is, the fastest of those that
    bench.products knows and that are installed. Medians over the repetitions of about `seconds` in all, with intervals over
    blocks of them in time.
    threads: 0 for every core the process may use. Raises UserError where another process uses the GPU, RuntimeError
    where the measuring process fails.
    """
    if device == "cuda":
        nvml.refuse_others()
    threads = threads or available_cores()
    with tempfile.TemporaryDirectory() as folder:
        job, out, log = (Path(folder) / name for name in ("job.json", "rows.json", "log"))
        asked = {"device": device, "threads": threads, "seconds": seconds, "out": str(out), "parent": os.getpid()}
        job.write_text(json.dumps(asked))
        outcome = process.run("sam3lab.bench.ceilings", [str(job)], log, _TIMEOUT, threads, offline=True)
        if outcome.status != "done":
            raise RuntimeError(f"the ceilings of {device} could not be measured: {outcome.reason}\n{process.tail(log)}")
        return pd.DataFrame(json.loads(out.read_text()), columns=COLUMNS)


def main(job_file: str, spawned: str) -> None:
    """Write the rows of the job's device, as lists in the order of COLUMNS, to the job's `out`."""
    from sam3lab.bench.products import loads

    job = json.loads(Path(job_file).read_text())
    child.tie_to_parent(job["parent"])
    best: dict[tuple[str, str], list[Any]] = {}
    for load in loads(job["device"], job["threads"]):
        clock = Clock(load.synchronize)
        warm_up(clock, load.call, seconds=job["seconds"])
        rates = [load.work / nanoseconds for nanoseconds in steady(clock, load.call, 5, job["seconds"]).wall]
        found = median_ci(in_blocks(rates))
        known = best.get((load.ceiling, load.precision))
        if known is None or found.value > known[COLUMNS.index("value")]:
            row = [load.ceiling, load.precision, found.value, found.low, found.high]
            best[load.ceiling, load.precision] = [*row, load.unit, load.size, len(rates), load.library]
    Path(job["out"]).write_text(json.dumps(list(best.values())))


def harness_overhead(samples: int = 100) -> Estimate:
    """What the harness adds to a call that takes exactly 10 ms, as a share of it (0.001 is 0.1%).

    The sleep backend's stage, which waits on the clock, is sampled by the code that samples every backend; the time from
    one entry into the backend to the next, less the 10 ms it waited, is all that the harness did between: calling,
    reading the clock, synchronising, keeping the sample, freeing the result.
    """
    from sam3lab.backends.base import Artifacts
    from sam3lab.backends.sleep import SleepBackend

    entries: list[int] = []

    class Stamping(SleepBackend):
        def image(self, pixels):
            entries.append(time.perf_counter_ns())
            return super().image(pixels)

    backend = Stamping()
    backend.load(Artifacts(checkpoint=Path(), resolution=14))
    pixels = np.zeros((1, 3, 14, 14), np.uint8)
    steady(Clock(backend.synchronize), lambda: backend.image(pixels), samples + 1, 0.0)
    waited = SleepBackend.milliseconds * 1e6
    return median_ci(in_blocks(np.diff(entries) / waited - 1))


if __name__ == "__main__":
    child.guard(main, *sys.argv[1:])
