"""Whether the core that launches the GPU's work computes at its own speed.

On a machine that shares its processor with others a core can be slowed, seen on virtual machines to half its speed for
tens of milliseconds up to seconds, while nothing that the system counts tells: no other thread runs, and no time is
stolen. Calls that the host bounds take as much longer. Each core is slowed by itself, as if by what runs on the other
hardware thread of the same physical core. A loop of known length, run between two samples and never inside one, shows it;
what was measured beside a slow look is kept apart, and the thread goes to a core that is not slowed at the time. Looking
takes time in which the device idles, so that it is kept to a small share of a phase, however many cores are looked at.
"""

import math
import os
from collections.abc import Callable
from itertools import pairwise

from sam3lab.bench.clock import now as monotonic

STEPS = 10_000  # of the loop, some tenths of a millisecond
LOOPS = 2  # of a look, which the slower decides: what slows a core may come and go within milliseconds
SLOW = 1.25  # times the fastest look
SHARE = 0.03  # of the time that looks may take
SEEKING = 0.06  # of the time that looks may take while another core is sought, as what slows them comes and goes
PATIENCE = 2.0  # seconds that a phase goes on beyond those asked for, while it lacks undisturbed samples
ENOUGH = 5  # samples then; where fewer were undisturbed, those beside the fastest looks
TRIES = 16  # cores that are looked at, at most, for one that is not slowed


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

    fastest: milliseconds of the fastest look so far, to begin with of what other processes of the run saw, since a process
    can be slowed from its begin to its end. now: the clock, in nanoseconds.
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
        self._last = 0  # of the cores, the one that was looked at last

    def start(self) -> None:
        """A phase begins."""
        self._until: float | None = None
        self._count = 0
        self._spans: list[tuple[int, float]] = []  # samples between two looks, and the slower one of these
        self._before = self._seek(enough=0.0)

    def between(self, count: int) -> None:
        """There are `count` samples of the phase; looks if it is time to."""
        if self._now() >= self._due:
            self._close(count)
            if self._is_slow(self._before):
                self._before = self._seek(enough=SLOW * self.fastest)

    def waits(self, least: int) -> bool:
        """Whether to go on, since fewer than `least` samples were undisturbed so far."""
        if self._until is None:
            self._until = self._now() + PATIENCE * 1e9
        undisturbed = sum(samples for samples, look in self._spans if not self._is_slow(look))
        return undisturbed < least and self._now() < self._until

    def disturbed(self, count: int, least: int) -> list[bool]:
        """Of each of the phase's `count` samples whether it does not count."""
        self._close(count)
        if len(self._cores.allowed) > 1:
            self._cores.leave()
        looks = [look for samples, look in self._spans for _ in range(samples)]
        limit = max(SLOW * self.fastest, sorted(looks)[min(least, ENOUGH) - 1])
        counted = [look for look in looks if look <= limit]
        self.slowed = sum(map(self._is_slow, counted)) / len(counted)
        return [look > limit for look in looks]

    def _close(self, count: int) -> None:
        look = self._look()
        self._spans.append((count - self._count, max(self._before, look)))
        self._before, self._count = look, count

    def _seek(self, enough: float) -> float:
        """A look at the core where the thread stays: the first, of some, whose look is at most `enough` (ms), or else the
        fastest.
        """
        begin, cores, looks = self._now(), self._cores.allowed, {}
        for _ in range(min(TRIES, len(cores)) if len(cores) > 1 else 0):
            self._last = (self._last + 1) % len(cores)
            self._cores.settle(cores[self._last])
            looks[cores[self._last]] = look = self._look()
            if look <= enough:
                break
        else:
            if looks:
                self._cores.settle(min(looks, key=looks.__getitem__))
            look = self._look()
        self._due = self._now() + (self._now() - begin) / SEEKING
        return look

    def _is_slow(self, look: float) -> bool:
        return look > SLOW * self.fastest

    def _look(self) -> float:
        """Milliseconds, of the slowest loop."""
        begin = self._now()
        self._loop()  # caches, which the sample left cold
        times = [self._now()]
        for _ in range(LOOPS):
            self._loop()
            times.append(self._now())
        took = max(after - before for before, after in pairwise(times)) / 1e6
        self.fastest = min(self.fastest, took)
        self._due = times[-1] + (times[-1] - begin) / SHARE
        return took
