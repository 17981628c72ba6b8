"""The batches that a worker has been sent and has not answered."""

from collections import deque
from dataclasses import dataclass

from sam3lab.serve.waiting import Job, now


@dataclass
class Sent:
    """A batch. why: of each of its jobs, why not the first engine answers it. begun: when its worker took it up, 0 before."""

    jobs: list[Job]
    why: list[str]
    sent: float
    begun: float = 0.0


class Underway:
    """Those of one worker, in their order: it computes the first, and finds the next one there when it is done.

    most: how many it may have at a time.
    """

    def __init__(self, most: int):
        self._most, self._sent, self._free = most, deque(), 0.0

    def __bool__(self) -> bool:
        return bool(self._sent)

    @property
    def full(self) -> bool:
        return len(self._sent) >= self._most

    @property
    def jobs(self) -> list[Job]:
        return [job for each in self._sent for job in each.jobs]

    @property
    def first(self) -> Sent:
        return self._sent[0]

    @property
    def seconds(self) -> float:
        """Since the worker has had nothing else to do than the first one."""
        return now() - max(self.first.sent, self._free)

    def add(self, jobs: list[Job], why: list[str]) -> None:
        self._sent.append(Sent(jobs, why, now()))

    def taken(self) -> None:
        """The worker has taken up the next one."""
        next(each for each in self._sent if not each.begun).begun = now()

    def ended(self) -> None:
        """It has ended the first one."""
        self._sent.popleft()
        self._free = now()

    def clear(self) -> list[Sent]:
        """All that it will not answer any more."""
        left, self._sent = list(self._sent), deque()
        return left

    def let_go(self) -> list[Job]:
        """The jobs of all that it will not answer any more."""
        return [job for each in self.clear() for job in each.jobs]
