"""Which engine answers: the first one, or the other where that one cannot, and why."""

import logging
import threading
from collections import Counter

from sam3lab.serve.engine import Engine
from sam3lab.serve.health import Overflow
from sam3lab.serve.request import ServiceError
from sam3lab.serve.spec import Limits
from sam3lab.serve.waiting import Job, Waiting

log = logging.getLogger("sam3lab.serve")


class Routing:
    """What the engines are told by. engines: set once they are made, the first one first.

    Called under the condition that they share, but for `failed`. counts: moved (requests that went to another engine than
    the one that had taken them) and switches (of the engine that answers).
    """

    def __init__(self, limits: Limits, waiting: Waiting, changed: threading.Condition):
        self._limits, self._waiting, self._changed = limits, waiting, changed
        self._overflow, self._last = Overflow(limits), ""
        self.engines: tuple[Engine, ...] = ()
        self.counts: Counter = Counter(moved=0, switches=0)

    def answering(self) -> Engine | None:
        """The engine that gets the next request: the first that is trusted; else any that runs; else None."""
        running = [engine for engine in self.engines if engine.running]
        # the last resort is used as long as it runs
        trusted = [engine for engine in running if engine.health.trusted or engine is not self.engines[0]]
        return next(iter(trusted or running), None)

    def expected_wait(self, name: str = "") -> float:
        """Seconds until a request that came now, for the engine of that name or for any, would be taken."""
        engine = self._expected(name)
        if engine is None:
            return 0.0
        return len(self._waiting) * engine.pace + (engine.busy_for() if engine.running else engine.back_in())

    def expected_answer(self, name: str = "") -> float:
        """Seconds until it would be answered: those, and its own batch, of what waits with it."""
        engine = self._expected(name)
        if engine is None:
            return 0.0
        together = min(len(self._waiting) + 1, self._limits.images) if self._limits.batching else 1
        return self.expected_wait(name) + together * engine.pace

    def _expected(self, name: str) -> Engine | None:
        """The engine that would take such a request: where none runs, the one that may be back first."""
        engines = [engine for engine in self.engines if name in ("", engine.name)]
        answering = None if name else self.answering()
        return answering or min(engines, key=Engine.back_in, default=None)

    def reason(self) -> str:
        """Why the first engine does not answer; empty where it does."""
        first, engine = self.engines[0], self.answering()
        if engine is first:
            return ""
        silent = self.engines if engine is None else (first,)
        return "; ".join(f"{each.name} {each.reason}" for each in silent)

    def may_take(self, engine: Engine, job: Job, place: int) -> bool:
        """Whether the engine may have a job now that waits at that place of the queue."""
        if job.only:
            return engine.name == job.only
        if engine.name in job.tried:
            return False
        if all(other.name in job.tried for other in self.engines if other is not engine):
            return True
        answering = self.answering()
        if engine is answering:
            return True
        if answering is not self.engines[0]:
            return False
        wait = len(self._waiting) * answering.pace + answering.busy_for()
        return self._overflow.update(wait) and place * answering.pace > self._limits.wait / 2

    def why(self, engine: Engine, job: Job) -> str:
        """Why not the first engine answers a job that this one is about to; empty where it does."""
        if engine is self.engines[0] or job.only:
            return ""
        return job.reason or self.reason() or f"the wait for {self.engines[0].name} was over {self._limits.wait:g} s"

    def failed(self, engine: Engine, job: Job, reason: str, again: bool = True) -> None:
        """The engine failed on a job: another one is to have it, if there is one, or it ends in an error.

        again: whether the same job may fare better another time.
        """
        with self._changed:
            job.tried.add(engine.name)
            job.reason = f"{engine.name} {reason}"
            left = any(each.hopeful for each in self.engines if each.name in job.inputs and each.name not in job.tried)
            if left:
                self.counts["moved"] += 1
                self._waiting.put_back([job])
        if not left:
            what = "the request was not answered"
            if len(job.tried) > 1:
                what = "every engine that it was given to failed on the request; the last"
            job.refuse(ServiceError(f"{what}: {job.reason}", engine.back_in() if again else None))

    def changed(self) -> None:
        """An engine's state is another one: counts and logs where that changes who answers."""
        engine = self.answering()
        if engine is None or engine.name == self._last or not all(each.settled for each in self.engines):
            return
        if self._last:
            self.counts["switches"] += 1
            log.warning("%s answers now%s", engine.name, f", because {self.reason()}" if self.reason() else "")
        self._last = engine.name
