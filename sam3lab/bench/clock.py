"""The one clock. Every backend's stages are timed by it and by nothing else."""

import ctypes
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import compress
from typing import TYPE_CHECKING, Any

from sam3lab.backends import cuda_driver

if TYPE_CHECKING:
    from sam3lab.bench.gpu_monitor import GpuMonitor
    from sam3lab.bench.host_speed import HostSpeed

# CLOCK_MONOTONIC on Linux: nanoseconds that a parent and its worker share, so that start-up can span both.
now = time.perf_counter_ns


class Clock:
    """Times calls that enqueue work: host time from before the call until `synchronize` has returned.

    Where `events` is given, CUDA event time is taken beside it: from before the call's first work on the device, which an
    idle one reaches at once, until it has finished the last. It leaves out what the host does after that.
    """

    def __init__(self, synchronize: Callable[[], None], events: "CudaEvents | None" = None):
        self.synchronize = synchronize
        self.events = events

    def time(self, call: Callable[[], Any]) -> tuple[Any, int, float | None]:
        """(result, wall nanoseconds, CUDA event milliseconds or None) of one call.

        The result outlives the timed region, so that freeing it is not timed.
        """
        if self.events is None:
            begin = now()
            result = call()
            self.synchronize()
            return result, now() - begin, None
        begin = now()
        self.events.start()
        result = call()
        self.events.stop()
        self.synchronize()
        wall = now() - begin
        return result, wall, self.events.milliseconds()


@dataclass
class Samples:
    """Wall times (ns) and, with CUDA events, event times (ms) of successive calls, each kept."""

    wall: list[int] = field(default_factory=list)
    event: list[float] = field(default_factory=list)

    def take(self, clock: Clock, call: Callable[[], Any]) -> Any:
        result, wall, event = clock.time(call)
        self.wall.append(wall)
        if event is not None:
            self.event.append(event)
        return result

    def parted(self, flags: list[bool]) -> "tuple[Samples, Samples]":
        """The samples whose flag is not set, and those whose flag is."""
        parts = ([not flag for flag in flags], flags)
        return tuple(Samples(*(list(compress(series, part)) for series in (self.wall, self.event))) for part in parts)


def warm_up(
    clock: Clock, call: Callable[[], Any], most: int = 10, seconds: float = 2.0, spread: float = 0.05
) -> Samples:
    """Calls until the last three agree within `spread` of the fastest of them, or `most` calls, or `seconds` passed."""
    samples = Samples()
    deadline = now() + int(seconds * 1e9)
    with no_collection():
        while len(samples.wall) < most:
            samples.take(clock, call)
            last = samples.wall[-3:]
            if now() >= deadline or (len(last) == 3 and max(last) - min(last) <= spread * min(last)):
                break
    return samples


def steady(
    clock: Clock,
    call: Callable[[], Any],
    least: int,
    seconds: float,
    monitor: "GpuMonitor | None" = None,
    host: "HostSpeed | None" = None,
) -> Samples:
    """Calls until there are at least `least` of them and `seconds` have passed; `monitor` looks at the GPU in between, and
    `host` at the core, which may wait for as many calls at its own speed."""
    samples = Samples()
    with no_collection():
        if host is not None:
            host.start()
        if monitor is not None:
            monitor.start()
        deadline = now() + int(seconds * 1e9)
        while len(samples.wall) < least or now() < deadline or (host is not None and host.waits(least)):
            samples.take(clock, call)
            if monitor is not None:
                monitor.between()
            if host is not None:
                host.between(len(samples.wall))
    return samples


class no_collection:  # noqa: N801 (read as a verb)
    """Collects garbage now and not inside: a collection in the middle of a sample is not the backend's time."""

    def __enter__(self):
        gc.collect()
        gc.disable()

    def __exit__(self, *error):
        gc.enable()


class CudaEvents:
    """A pair of CUDA events on one stream, through the driver, so that no runtime's own clock is involved.

    stream: the address of the stream that the work is enqueued on; 0 is the legacy default stream, which waits for and
    is waited for by all blocking streams. Work on a stream that does not wait for others is seen from that stream alone.
    Raises OSError where there is no driver, RuntimeError where a call fails.
    """

    def __init__(self, stream: int = 0):
        cuda_driver.use_primary_context()
        self._stream, self._begin, self._end = ctypes.c_void_p(stream), ctypes.c_void_p(), ctypes.c_void_p()
        for event in (self._begin, self._end):
            cuda_driver.call("cuEventCreate", ctypes.byref(event), 0)

    def start(self) -> None:
        cuda_driver.call("cuEventRecord", self._begin, self._stream)

    def stop(self) -> None:
        cuda_driver.call("cuEventRecord", self._end, self._stream)

    def milliseconds(self) -> float:
        """Between the two; both must have been reached, as they have after a synchronisation."""
        cuda_driver.call("cuEventSynchronize", self._end)
        elapsed = ctypes.c_float()
        # Drivers of CUDA 12.8 and later name a second version; the first stays and does the same for timing events.
        cuda_driver.call("cuEventElapsedTime", ctypes.byref(elapsed), self._begin, self._end)
        return elapsed.value
