"""What the GPU does while a stage is measured: energy, clocks, temperature, read between samples and never inside one.

A thread that read at its own pace would take the interpreter's lock, and with it time, from the very samples beside
which it runs. Between two samples the device is idle and no clock runs: a reading there costs idle time and nothing
else, and `between` keeps that to SHARE of the phase. `facts` says how much it was.

Energy is that of calls one after another, after the phase: while a core is looked for (see host_speed) the device idles,
which no user's would. Its counter moves in steps of a tenth of a second or so, and asking for it takes milliseconds. So
`finish` makes calls, untimed, until the counter has moved, for WINDOW, and until it has moved once more. The energy of an
image is what the counter gained between the two steps, over the images that were made.
"""

from collections import Counter
from collections.abc import Callable
from statistics import median
from typing import Any

from sam3lab.bench.clock import now as monotonic
from sam3lab.nvml import LIMITS, Gpu

PERIOD = 0.05  # seconds between readings of clocks and temperature, at least
SHARE = 0.02  # of a phase that they may take
WINDOW = 1.0  # seconds from the one step of the energy counter to the other, at least
STEP = 0.25  # seconds that a step of the counter is waited for
TENTH = 1e8  # ns, about a step
PAUSE = 0.015  # seconds of calls between two questions for the counter
_UNITS = {"energy": "J", "power": "W", "clock_sm": "MHz", "clock_memory": "MHz", "temperature": "C", "limited": "1"}


class GpuMonitor:
    """One phase after another: `start` and, after each of its samples, `between`, which `clock.steady` calls; then `finish`
    and `values`.

    now: the clock, in nanoseconds.
    """

    def __init__(self, gpu: Gpu, now: Callable[[], int] = monotonic):
        self._gpu, self._now = gpu, now
        self._limits: Counter[int] = Counter()
        self._readings, self._spent, self._elapsed = 0, 0, 0

    def start(self) -> None:
        """A phase begins."""
        self._states: list[dict[str, float | None]] = []
        self._calls = self._seconds = self._joules = 0.0
        self._made = 0
        self._begin = self._end = self._due = self._now()

    def between(self) -> None:
        """Another sample was taken; reads if it is time to."""
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
        """The phase ends; `call` goes on, untimed, for the energy of an image."""
        self._elapsed += self._end - self._begin
        if (first := self._step(call)) is not None:
            self._go_on(call, first[1] + WINDOW * 1e9)
            if (last := self._step(call)) is not None:
                self._calls, nanoseconds, self._joules = (end - begin for begin, end in zip(first, last, strict=True))
                self._seconds = nanoseconds / 1e9

    def _step(self, call: Callable[[], Any]) -> tuple[float, float, float] | None:
        """Goes on until the energy counter moves: the calls made by then, the time (ns) and the joules; None if it does not
        within STEP.
        """
        joules = self._gpu.energy()
        before, deadline = (self._made, self._now()), self._now() + STEP * 1e9
        while joules is not None and before[1] < deadline:
            self._go_on(call, before[1] + PAUSE * 1e9)
            moved, here = self._gpu.energy(), (self._made, self._now())
            if moved is not None and moved != joules:  # since the last question, and at most a step ago
                (calls, begin), (more, end) = before, here
                at = (max(begin, end - TENTH) + end) / 2
                return calls + (more - calls) * (at - begin) / (end - begin), at, moved
            before = here
        return None

    def _go_on(self, call: Callable[[], Any], until: float) -> None:
        while self._now() < until:
            call()
            self._made += 1

    def values(self, images: int) -> list[tuple[str, str, float]]:
        """(metric, unit, value) of the phase, of what the driver tells; images: how many a call takes.

        energy (J) of one image and power (W), both of the calls of `finish`; the medians of clock_sm and clock_memory (MHz),
        the greatest temperature (C), and limited, the share of the readings at which something held the clocks down.
        Where the counter tells nothing, power is the median of the driver's.
        """
        found = {}
        for name, of in (("power", median), ("clock_sm", median), ("clock_memory", median), ("temperature", max)):
            if known := [state[name] for state in self._states if state[name] is not None]:
                found[name] = of(known)
        if self._seconds:
            found |= {"power": self._joules / self._seconds, "energy": self._joules / self._calls / images}
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
