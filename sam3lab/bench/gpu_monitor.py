"""What the GPU does while a stage is measured: energy, clocks, temperature, read between samples and never inside one.

A thread that read at its own pace would take the interpreter's lock, and with it time, from the very samples beside
which it runs. Between two samples the device is idle and no clock runs: a reading there costs idle time and nothing
else, and `between` keeps that to SHARE of the phase. `facts` says how much it was.

The energy counter moves in steps of a tenth of a second or so, and asking for it takes milliseconds. So it is asked for
at the two ends alone: `start` waits until it moves, and `finish` adds calls, untimed, until it has moved once more and
WINDOW has passed. The energy of an image is what the counter gained between the two, over the images that were made.
"""

import math
import time
from collections import Counter
from collections.abc import Callable
from statistics import median
from typing import Any

from sam3lab.bench.clock import now as monotonic
from sam3lab.nvml import LIMITS, Gpu

PERIOD = 0.05  # seconds between readings of clocks and temperature, at least
SHARE = 0.02  # of a phase that they may take
WINDOW = 0.5  # seconds from the one step of the energy counter to the other, at least
STEP = 0.25  # seconds that a step of the counter is waited for
TENTH = 1e8  # ns, about a step
PAUSE = 0.015  # seconds of calls between two questions for the counter
_TICK = 0.001
_UNITS = {"energy": "J", "power": "W", "clock_sm": "MHz", "clock_memory": "MHz", "temperature": "C", "limited": "1"}


class GpuMonitor:
    """One phase after another: `start` and, after each of its samples, `between`, which `clock.steady` calls; then `finish`
    and `values`.

    now: the clock, in nanoseconds. sleep: waits so many seconds.
    """

    def __init__(self, gpu: Gpu, now: Callable[[], int] = monotonic, sleep: Callable[[float], None] = time.sleep):
        self._gpu, self._now, self._sleep = gpu, now, sleep
        self._limits: Counter[int] = Counter()
        self._readings, self._spent, self._elapsed = 0, 0, 0

    def start(self) -> None:
        """The phase begins when the energy counter moves, which is waited for."""
        self._states: list[dict[str, float | None]] = []
        self._calls, self._counted = 0, math.nan
        self._joules = first = self._gpu.energy()
        deadline = self._now() + STEP * 1e9
        while first is not None and self._joules == first:
            if self._now() > deadline:
                self._joules = None
                break
            self._sleep(_TICK)
            self._joules = self._gpu.energy()
        self._begin = self._end = self._due = self._now()
        self._gained, self._took = 0.0, 0.0

    def between(self) -> None:
        """Another sample was taken; reads if it is time to."""
        self._calls += 1
        self._end = begin = self._now()
        if begin >= self._due:
            state = self._gpu.state()
            self._states.append(state)
            self._readings += state["limits"] is not None
            self._limits.update(bit for bit in LIMITS if (state["limits"] or 0) & bit)
            end = self._now()
            self._spent += end - begin
            self._due = end + max((end - begin) / SHARE, PERIOD * 1e9)

    def finish(self, call: Callable[[], Any]) -> None:
        """The phase ends; `call` goes on, untimed, until the energy counter has moved."""
        self._elapsed += self._end - self._begin
        if self._joules is None:
            return
        while self._now() - self._begin < WINDOW * 1e9:
            self._more(call)
        last, deadline = self._gpu.energy(), self._now() + STEP * 1e9
        before = self._calls, self._now()
        while self._now() < deadline:
            pause = self._now() + PAUSE * 1e9
            while self._now() < pause:
                self._more(call)
            joules, here = self._gpu.energy(), (self._calls, self._now())
            if joules != last:  # at some moment since the last question, and at most a step ago
                (calls, begin), (more, end) = before, here
                at = (max(begin, end - TENTH) + end) / 2
                self._counted = calls + (more - calls) * (at - begin) / (end - begin)
                self._gained, self._took = joules - self._joules, (at - self._begin) / 1e9
                return
            before = here

    def _more(self, call: Callable[[], Any]) -> None:
        call()
        self._calls += 1

    def values(self, images: int) -> list[tuple[str, str, float]]:
        """(metric, unit, value) of the phase, of what the driver tells; images: how many a call takes.

        energy (J) of one image, power (W), the medians of clock_sm and clock_memory (MHz), the greatest temperature (C),
        and limited, the share of the readings at which something held the clocks down.
        """
        found = {}
        for name, of in (("power", median), ("clock_sm", median), ("clock_memory", median), ("temperature", max)):
            if known := [state[name] for state in self._states if state[name] is not None]:
                found[name] = of(known)
        if self._took:
            found |= {"power": self._gained / self._took, "energy": self._gained / self._counted / images}
        if limits := [state["limits"] for state in self._states if state["limits"] is not None]:
            found["limited"] = sum(any(bits & bit for bit in LIMITS) for bits in limits) / len(limits)
        return [(name, unit, found[name]) for name, unit in _UNITS.items() if name in found]

    def facts(self) -> dict[str, Any]:
        """Of all phases: what held the clocks down, with the share of the readings, and the share of time they took."""
        limits = {LIMITS[bit]: round(count / self._readings, 3) for bit, count in sorted(self._limits.items())}
        return {
            "gpu_limits": limits,
            "gpu_reading_share": round(self._spent / self._elapsed, 4) if self._elapsed else 0,
        }
