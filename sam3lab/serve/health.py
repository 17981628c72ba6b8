"""When an engine that failed is trusted again, and when a wait is too long: both with hysteresis."""

import time
from collections.abc import Callable, Sequence

from sam3lab.serve import failures
from sam3lab.serve.batch import Failure
from sam3lab.serve.spec import Limits

_ERRORS = 2  # failures in a row, of a kind that may be the requests' own doing, until the engine is to blame
_SETTLED = 10.0  # seconds after which the loss of a worker has nothing to do with that of the one before
_PAUSE, _LONGEST_PAUSE = 0.5, 30.0  # before the third start in a row, and at most
_CALM = 60.0  # an engine that fails within this many seconds of its recovery, or twice its last pause, is flapping


class Health:
    """Trust in one engine. It is lost at once, and won back by several trials in a row over some time.

    Each loss soon after a recovery doubles that time. reason: why there is none, in words for everyone; detail: what the
    runtime said, for the operator. Both are empty while there is trust.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic):
        self._limits, self._clock = limits, clock
        self.trusted, self.reason, self.detail = False, "is starting", ""
        self.pause = 0.0  # least seconds between loss and recovery
        self._lost = self._next = self._recovered = -float("inf")
        self._passed = self._errors = 0

    def loaded(self) -> None:
        """Its worker is ready. The first time that is enough; later it counts as a trial passed."""
        self._errors = 0
        if self._lost == -float("inf"):
            self.trusted, self.reason, self.detail = True, "", ""
        else:
            self.passed()

    def failed(self, reason: str, detail: str = "") -> None:
        """It failed at something, real or trial."""
        moment = self._clock()
        if self.trusted or self._lost == -float("inf"):
            flapping = moment - self._recovered < max(_CALM, 2 * self.pause)
            self.pause = min(2 * self.pause, self._limits.recovery_most) if flapping else self._limits.recovery
            self._lost = moment
        self.trusted, self.reason, self.detail, self._passed = False, reason, detail, 0
        self._next = moment + self._limits.probe

    def passed(self) -> None:
        """It passed a trial."""
        moment = self._clock()
        self._passed += 1
        self._next = moment + self._limits.probe
        if not self.trusted and self._passed >= self._limits.probes and moment - self._lost >= self.pause:
            self.trusted, self.reason, self.detail, self._recovered = True, "", "", moment

    def judge(self, found: Sequence[Failure], trial: bool = False) -> tuple[str, str] | None:
        """What the failures of a batch or a trial, or their absence, mean. Reason and detail where its worker cannot go on.

        A lack of memory is never the request's own doing. Another error may be, so that one in real work costs no trust
        until the next.
        """
        if not found:
            self._errors = 0
            if not self.trusted:
                self.passed()
            return None
        worst = next((each for each in found if each.kind != failures.ERROR), found[0])
        phrase = failures.PHRASES[worst.kind]
        if worst.kind == failures.DEVICE:
            return phrase, worst.reason
        self._errors += 1
        if worst.kind == failures.MEMORY or self._errors >= _ERRORS or trial:
            self.failed(phrase, worst.reason)
        return None

    def next_trial(self) -> float | None:
        """When to try it, on the clock; None while it is trusted."""
        return None if self.trusted else self._next


class Backoff:
    """When a worker that was lost is started again: at once, and later and later where it is lost soon after.

    losses: how many were lost in a row. until: on the clock, when the next one may be started.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock, self._started = clock, float("inf")
        self.losses, self.until = 0, 0.0

    def started(self) -> None:
        """A worker is ready."""
        self._started = self._clock()

    def lost(self) -> None:
        """A worker was lost, ready or not."""
        moment = self._clock()
        self.losses = 1 if moment - self._started > _SETTLED else self.losses + 1
        self._started = float("inf")
        pause = min(_PAUSE * 2 ** (self.losses - 2), _LONGEST_PAUSE) if self.losses > 1 else 0.0
        self.until = moment + pause


class Overflow:
    """Whether the wait for an engine is too long: from when it is beyond the limit until it is below half of it, and has
    been on for a while."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic):
        self._limits, self._clock, self.on, self._since = limits, clock, False, 0.0

    def update(self, wait: float) -> bool:
        """What `on` is now that the wait is expected to be so many seconds."""
        moment = self._clock()
        if not self.on and 0 < self._limits.wait < wait:
            self.on, self._since = True, moment
        elif self.on and wait < self._limits.wait / 2 and moment - self._since >= self._limits.recovery:
            self.on = False
        return self.on
