"""Whether the core that launches the GPU's work computes at its own speed.

On a machine that shares its processor with others a core can be slowed, seen on a virtual machine to two thirds for
seconds at a time, while nothing that the system counts tells: no other thread runs, and no time is stolen. Calls that the
host bounds take as much longer. A loop of known length, run between two samples and never inside one, shows it; what was
measured beside a slow look is kept apart.
"""

import math
from collections.abc import Callable
from typing import Any

from sam3lab.bench.clock import now as monotonic

STEPS = 10_000  # of the loop, some tenths of a millisecond
SLOW = 1.3  # times the fastest look
SHARE = 0.02  # of the time that looks may take
PATIENCE = 10.0  # seconds that a process waits for its core beyond those asked for, in all phases together


def loop() -> None:
    total = 0
    for step in range(STEPS):
        total += step


class HostSpeed:
    """`start`, `between` after each sample and `waits` when there are enough, which `clock.steady` calls, phase by phase;
    and then `disturbed`.

    fastest: milliseconds of the fastest look that other processes of the run saw, since a process can be slowed from its
    begin to its end. now: the clock, in nanoseconds.
    """

    def __init__(
        self, fastest: float | None = None, now: Callable[[], int] = monotonic, loop: Callable[[], None] = loop
    ):
        self.fastest = math.inf if fastest is None else fastest
        self._now, self._loop = now, loop
        self._patience = PATIENCE * 1e9
        self._samples, self._disturbed, self._given_up = 0, 0, 0

    def start(self) -> None:
        """A phase begins."""
        self._undisturbed = self._count = 0
        self._asked: int | None = None
        self._spans: list[tuple[int, int, bool]] = []
        self._slow = self._look()

    def between(self, count: int) -> None:
        """There are `count` samples of the phase; looks if it is time to."""
        if self._now() >= self._due:
            self._close(count)

    def waits(self, least: int) -> bool:
        """Whether to go on, since fewer than `least` samples were undisturbed so far."""
        asked = self._now()
        self._patience -= asked - (asked if self._asked is None else self._asked)
        self._asked = asked
        return self._undisturbed < least and self._patience > 0

    def disturbed(self, count: int, least: int) -> list[bool]:
        """Of each of the phase's `count` samples whether it does not count; none where fewer than `least` are undisturbed."""
        self._close(count)
        self._samples += count
        if self._undisturbed < least:
            self._given_up += 1
            return [False] * count
        flags = [slow for begin, end, slow in self._spans for _ in range(begin, end)]
        self._disturbed += sum(flags)
        return flags

    def facts(self) -> dict[str, Any]:
        """Of all phases: the fastest look (ms), the share of the samples left out, and the phases in which none was."""
        return {
            "host_look_ms": round(self.fastest, 4),
            "host_disturbed_share": round(self._disturbed / self._samples, 4) if self._samples else 0,
            "host_given_up": self._given_up,
        }

    def _close(self, count: int) -> None:
        slow = self._look()
        disturbed = slow or self._slow
        self._spans.append((self._count, count, disturbed))
        if not disturbed:
            self._undisturbed += count - self._count
        self._slow, self._count = slow, count

    def _look(self) -> bool:
        """Whether the core is slow: by the faster of two loops, as an interrupt may fall into one."""
        begin = self._now()
        self._loop()
        middle = self._now()
        self._loop()
        end = self._now()
        took = min(middle - begin, end - middle) / 1e6
        self.fastest = min(self.fastest, took)
        self._due = end + (end - begin) / SHARE
        return took > SLOW * self.fastest
