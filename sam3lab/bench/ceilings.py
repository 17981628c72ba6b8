"""What the machine can do at most, and what the harness itself costs: the scale that every other number is read on."""

import time
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from sam3lab.bench import environment
from sam3lab.bench.clock import Clock, steady, warm_up
from sam3lab.bench.statistics import Estimate, median_ci
from sam3lab.cores import available_cores

COLUMNS = ["ceiling", "precision", "value", "low", "high", "unit", "size", "samples"]


def ceilings(device: str = "cpu", threads: int = 0, seconds: float = 0.3) -> pd.DataFrame:
    """Copy bandwidth and matrix-product rates of a device through torch; COLUMNS, one row each.

    copy: GB/s (10^9 bytes), bytes read and bytes written both counted, of a buffer far larger than the caches.
    matmul: GFLOP/s of a square product, 2n³ operations; fp32 (TF32 off), on "cuda" also tf32, bf16 and fp16, on a CPU
    bf16 where it has instructions for it. size: bytes copied, or n. Medians with intervals over the repetitions of about
    `seconds` each. threads: 0 for every core the process may use. torch's settings are as before afterwards.
    """
    import torch

    gpu = device == "cuda"
    synchronize = torch.cuda.synchronize if gpu else lambda: None
    rows = []

    def add(ceiling: str, precision: str, work: float, unit: str, size: int, call: Callable[[], object]) -> None:
        clock = Clock(synchronize)
        warm_up(clock, call, seconds=seconds)
        rates = [work / nanoseconds for nanoseconds in steady(clock, call, 5, seconds).wall]
        found = median_ci(pd.DataFrame({"round": 0, "value": rates}))
        rows.append([ceiling, precision, found.value, found.low, found.high, unit, size, len(rates)])

    with _settings(threads or available_cores()):
        size = 2**30 if gpu else 2**27
        source = torch.ones(size, dtype=torch.uint8, device=device)
        add("copy", "bytes", 2 * size, "GB/s", size, partial(torch.empty_like(source).copy_, source))

        n = 8192 if gpu else 1536
        for precision, dtype in _products(gpu, torch):
            torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
            a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
            add("matmul", precision, 2 * n**3, "GFLOP/s", n, partial(torch.mm, a, b, out=torch.empty_like(a)))
    return pd.DataFrame(rows, columns=COLUMNS)


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
    return median_ci(pd.DataFrame({"round": 0, "value": np.diff(entries) / waited - 1}))


def _products(gpu: bool, torch) -> list[tuple[str, object]]:
    if gpu:
        kinds = (torch.float32, torch.float32, torch.bfloat16, torch.float16)
        return list(zip(("fp32", "tf32", "bf16", "fp16"), kinds, strict=True))
    isa = environment.cpu()["cpu_isa"].split()
    bf16 = {"avx512_bf16", "amx_bf16"} & set(isa)
    return [("fp32", torch.float32)] + ([("bf16", torch.bfloat16)] if bf16 else [])


@contextmanager
def _settings(threads: int):
    import torch

    before = torch.get_num_threads(), torch.backends.cuda.matmul.allow_tf32
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.backends.cuda.matmul.allow_tf32 = before[1]
