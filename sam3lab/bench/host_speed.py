"""Whether the core that launches the GPU's work computes at its own speed.

On a machine that shares its processor with others a core can be slowed, seen on virtual machines to half its speed for
tens of milliseconds up to seconds, while nothing that the system counts tells: no other thread runs, and no time is
stolen. Calls that the host bounds take as much longer. Each core is slowed by itself, as if by what runs on the other
hardware thread of the same physical core. A loop of known length, run between two samples and never inside one, shows it;
what was measured beside a slow look is kept apart, and the thread moves to a core that is not slow.
"""

import math
import os
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from sam3lab.bench.clock import now as monotonic

STEPS = 10_000  # of the loop, some tenths of a millisecond
LOOPS = 2  # of a look, which the slower decides: what slows a core may come and go within milliseconds
SLOW = 1.25  # times the fastest look
SHARE = 0.03  # of the time that looks may take
PATIENCE = 2.0  # seconds that a phase goes on beyond those asked for, while it lacks undisturbed samples
ENOUGH = 5  # undisturbed samples then, for the others not to count
TRIES = 16  # cores that are looked at, at most, when one is slow


def loop() -> None:
    total = 0
    for step in range(STEPS):
        total += step


class Cores:
    """Those that the calling thread may run on (`allowed`; none where the system does not tell), and where it stays."""

    def __init__(self):
        self.allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []

    def settle(self, core: int) -> None:
        os.sched_setaffinity(0, {core})

    def leave(self) -> None:
        """The system chooses again."""
        os.sched_setaffinity(0, self.allowed)


class HostSpeed:
    """`start`, `between` after each sample and `waits` when there are enough, which `clock.steady` calls, phase by phase;
    and then `disturbed`, after which the thread may run where it could before, and `slowed` is the share of disturbed
    samples among those that count.

    fastest: milliseconds of the fastest look that other processes of the run saw, since a process can be slowed from its
    begin to its end. now: the clock, in nanoseconds.
    """

    def __init__(
        self,
        fastest: float | None = None,
        now: Callable[[], int] = monotonic,
        loop: Callable[[], None] = loop,
        cores: Cores | None = None,
    ):
        self.fastest = math.inf if fastest is None else fastest
        self._now, self._loop, self._cores = now, loop, cores or Cores()
        self._last, self._moves = 0, 0  # of the cores, the one that was looked at last
        self._samples, self._disturbed, self._given_up = 0, 0, 0

    def start(self) -> None:
        """A phase begins."""
        self._undisturbed = self._count = 0
        self._until: float | None = None
        self._spans: list[tuple[int, int, bool]] = []
        self._slow = self._look() and not self._moved()

    def between(self, count: int) -> None:
        """There are `count` samples of the phase; looks if it is time to."""
        if self._now() >= self._due:
            self._close(count)
            self._slow = self._slow and not self._moved()

    def waits(self, least: int) -> bool:
        """Whether to go on, since fewer than `least` samples were undisturbed so far."""
        if self._until is None:
            self._until = self._now() + PATIENCE * 1e9
        return self._undisturbed < least and self._now() < self._until

    def disturbed(self, count: int, least: int) -> list[bool]:
        """Of each of the phase's `count` samples whether it does not count; none where fewer are undisturbed than `least`
        and than are enough."""
        self._close(count)
        if self._last:
            self._cores.leave()
        flags = [slow for begin, end, slow in self._spans for _ in range(begin, end)]
        self._samples += count
        if self._undisturbed < min(least, ENOUGH):
            self.slowed = sum(flags) / count
            self._given_up += 1
            return [False] * count
        self.slowed = 0.0
        self._disturbed += sum(flags)
        return flags

    def facts(self) -> dict[str, Any]:
        """Of all phases: the fastest look (ms), the share of the samples left out, the phases in which none was, and the moves
        to other cores."""
        return {
            "host_look_ms": round(self.fastest, 4),
            "host_disturbed_share": round(self._disturbed / self._samples, 4) if self._samples else 0,
            "host_given_up": self._given_up,
            "host_moves": self._moves,
        }

    def _close(self, count: int) -> None:
        slow = self._look()
        disturbed = slow or self._slow
        self._spans.append((self._count, count, disturbed))
        if not disturbed:
            self._undisturbed += count - self._count
        self._slow, self._count = slow, count

    def _moved(self) -> bool:
        """Whether another core was found that is not slow; the thread stays there."""
        cores = self._cores.allowed
        for _ in range(min(TRIES, len(cores) - 1)):
            self._last += 1
            self._cores.settle(cores[self._last % len(cores)])
            if not self._look():
                self._moves += 1
                return True
        return False

    def _look(self) -> bool:
        """Whether the core is slow."""
        begin = self._now()
        self._loop()  # caches, which the sample left cold
        times = [self._now()]
        for _ in range(LOOPS):
            self._loop()
            times.append(self._now())
        took = max(after - before for before, after in pairwise(times)) / 1e6
        self.fastest = min(self.fastest, took)
        self._due = times[-1] + (times[-1] - begin) / SHARE
        return took > SLOW * self.fastest
