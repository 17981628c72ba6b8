"""Requests that wait: a bounded queue with deadlines, from which batches are taken."""

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field

from sam3lab.serve.batch import Filling, Inputs
from sam3lab.serve.request import Answer, Busy, Late, ServiceError
from sam3lab.serve.spec import Limits

now = time.monotonic


@dataclass(eq=False)
class Job:
    """A request that was accepted.

    inputs: by engine, what that one computes on. only: the one engine that it may go to, empty for any. reason: why
    the first engine does not answer it, where that is known. begun: whether a worker has taken it, after which it cannot
    be cancelled. tried: engines that failed on it. Times as `now` tells them; preprocess in milliseconds.
    """

    inputs: dict[str, Inputs]
    prompts: tuple[str, ...]
    size: tuple[int, int]
    floor: float
    timeout: float
    only: str = ""
    preprocess: float = 0.0
    future: "Future[Answer]" = field(default_factory=Future)
    queued: float = field(default_factory=now)
    deadline: float = 0.0
    reason: str = ""
    begun: bool = False
    tried: set[str] = field(default_factory=set)
    returned: bool = False

    def answer(self, answer: Answer) -> None:
        """Unless it has ended before."""
        with contextlib.suppress(InvalidStateError):
            self.future.set_result(answer)

    def refuse(self, error: ServiceError) -> None:
        """Unless it has ended before."""
        with contextlib.suppress(InvalidStateError):
            self.future.set_exception(error)

    def late(self, retry_after: float) -> None:
        """As `refuse`, because its time is out."""
        self.refuse(Late(f"no engine answered within {self.timeout:.1f} s", retry_after))


class Waiting:
    """The jobs that no worker has taken, first come first. All of it is under the condition `changed`, for any thread."""

    def __init__(self, limits: Limits, changed: threading.Condition):
        self._limits, self._changed, self._jobs = limits, changed, []

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def full(self) -> bool:
        return len(self._jobs) >= self._limits.queue

    def put(self, job: Job, retry_after: float) -> None:
        """Raises Busy where as many wait as may."""
        with self._changed:
            if self.full:
                raise busy(len(self._jobs), retry_after)
            self._jobs.append(job)
            self._changed.notify_all()
        job.future.add_done_callback(self._drop)  # which knows no job: they would keep each other's memory

    def put_back(self, jobs: list[Job]) -> None:
        """In front of the others, however many there are: they were accepted before."""
        with self._changed:
            self._jobs[:0] = [job for job in jobs if not job.future.done()]
            self._changed.notify_all()

    def _drop(self, future: "Future[Answer]") -> None:
        """Make room where one that waits was cancelled."""
        if future.cancelled():
            with self._changed:
                self._jobs = [job for job in self._jobs if job.future is not future]

    def take(self, engine: str, may: Callable[[Job, int], bool]) -> tuple[list[Job], float | None]:
        """(the jobs of a batch for an engine, None); or ([], the time when to look again, if there is one).

        may(job, place): whether the engine may have a job that is at that place of the queue. What was cancelled or is
        late is not taken.
        """
        with self._changed:
            while True:
                chosen, until = self._choose(engine, may)
                for job in chosen:
                    self._jobs.remove(job)
                wanted = [job for job in chosen if _begin(job)]
                if wanted or not chosen:
                    return wanted, until

    def _choose(self, engine: str, may: Callable[[Job, int], bool]) -> tuple[list[Job], float | None]:
        limits, moment, chosen = self._limits, now(), []
        filling = Filling(limits.images, limits.pairs)
        for place, job in enumerate(self._jobs):
            if job.deadline <= moment or engine not in job.inputs or not may(job, place):
                continue
            if filling.add(job.inputs[engine]):
                chosen.append(job)
            if filling.full or not limits.batching:
                break
        until = chosen[0].queued + limits.fill if chosen else 0.0
        if chosen and limits.batching and not filling.full and not self.full and moment < until:
            return [], until
        return chosen, None

    def late(self, moment: float) -> list[Job]:
        """Takes out those whose deadline is over."""
        with self._changed:
            late = [job for job in self._jobs if job.deadline <= moment]
            for job in late:
                self._jobs.remove(job)
            return late

    def next_deadline(self) -> float | None:
        with self._changed:
            return min((job.deadline for job in self._jobs), default=None)

    def clear(self) -> list[Job]:
        """Takes out all."""
        with self._changed:
            jobs, self._jobs = self._jobs, []
            return jobs


def busy(waiting: int, retry_after: float) -> Busy:
    """What a client is told where the queue is full."""
    return Busy(f"{waiting} requests are waiting already", retry_after)


def _begin(job: Job) -> bool:
    """Whether it is still wanted; from here on it cannot be cancelled."""
    if not job.begun:
        job.begun = job.future.set_running_or_notify_cancel()
    return job.begun and not job.future.done()
