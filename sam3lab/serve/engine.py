"""An engine seen from the server: its worker, started again whenever it is lost, and the thread that feeds it."""

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from sam3lab.backends import Artifacts
from sam3lab.serve import failures
from sam3lab.serve.batch import Batch, Failure, Found
from sam3lab.serve.health import Backoff, Health
from sam3lab.serve.messages import Facts, Order
from sam3lab.serve.request import Answer, NotReady, ServiceError, WorkerLost
from sam3lab.serve.spec import EngineSpec, Limits
from sam3lab.serve.tally import OF_ENGINES, Tally
from sam3lab.serve.underway import Sent, Underway
from sam3lab.serve.waiting import Job, Waiting, now
from sam3lab.serve.worker_process import WorkerProcess

if TYPE_CHECKING:
    from sam3lab.serve.routing import Routing

log = logging.getLogger("sam3lab.serve")

_GRACE = 5.0  # seconds that a batch may still take when the service closes


class Engine:
    """Serves what the router lets it take, until `close`. What others read of it is for reading under `changed`.

    running: its worker is there. settled: its first start has ended, well or not. pace: seconds a request, lately.
    starts: of its worker.
    """

    def __init__(
        self,
        spec: EngineSpec,
        artifacts: Artifacts,
        limits: Limits,
        waiting: Waiting,
        changed: threading.Condition,
        router: "Routing",
    ):
        self.spec, self.health, self.tally = spec, Health(limits), Tally()
        self._artifacts, self._prepared, self._limits = artifacts, False, limits
        self._waiting, self._changed, self._router = waiting, changed, router
        self.running = self.settled = self._closing = self._hung = self._trying = False
        self._underway = Underway(1 + spec.ahead)
        self.pace, self.starts, self.answered = 0.0, 0, 0
        self._facts: Facts | None = None
        self._backoff = Backoff()
        self._overdue = 0.0
        self._process: WorkerProcess | None = None
        self._thread = threading.Thread(target=self._work, name=f"sam3lab-{spec.name}", daemon=True)

    # From other threads

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Take nothing more."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def close(self) -> None:
        """Finish what it holds, or not, after a while; then end its worker."""
        self.stop()
        with self._changed:
            self._changed.wait_for(lambda: not self.held, _GRACE)
            process = self._process if self.held or not self.running else None
        if process is not None:
            process.kill()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def state(self) -> str:
        """starting, ready, failing (alive, and not trusted), restarting or closed."""
        if self._closing:
            return "closed"
        if self.running:
            return "ready" if self.health.trusted else "failing"
        return "restarting" if self.settled else "starting"

    @property
    def reason(self) -> str:
        """Why it is not ready, in words that follow its name; empty where it is."""
        return self.health.reason or ("" if self.running else "is started again")

    @property
    def hopeful(self) -> bool:
        """Whether it is there, or was just now and is expected back."""
        return self.running or (self._facts is not None and self._backoff.losses <= 1)

    @property
    def held(self) -> list[Job]:
        """The jobs that its worker has."""
        return self._underway.jobs

    def busy_for(self) -> float:
        """Seconds that what it holds is still expected to take."""
        return max(0.0, self.pace * len(self.held) - self._underway.seconds) if self._underway else 0.0

    def back_in(self) -> float:
        """Seconds until it may be there again."""
        return max(1.0, self._backoff.until - now())

    def overdue(self) -> float | None:
        """When what it is doing has taken too long, on the clock; None while it does nothing."""
        return self._overdue or None

    def end_hung(self) -> None:
        """End the worker, which is taken to hang."""
        with self._changed:
            process, self._hung, self._overdue = self._process, True, 0.0
        if process is not None:
            log.warning("%s: its worker hangs, and is ended", self.name)
            process.kill(stacks=True)

    def status(self) -> dict:
        """JSON-ready."""
        return {
            "state": self.state,
            "reason": self.reason,
            "detail": self.health.detail,
            "backend": self.spec.backend,
            "checkpoint": self.spec.checkpoint,
            "checkpoint_sha256": self._facts.checkpoint_sha256 if self._facts else "",
            "precision": self.spec.precision,
            "device": self.spec.device,
            "resolution": self._artifacts.resolution,
            "pid": self._process.pid if self._process is not None and self.running else None,
            "held": len(self.held),
            "answered": self.answered,
            "restarts": max(0, self.starts - 1),
            "seconds_a_request": self.pace,
            "caches": self.tally.caches(),
            "counts": {name: self.tally.counts[name] for name in OF_ENGINES},
        }

    # Its own thread

    def _work(self) -> None:
        while not self._closing:
            process, lost = None, ("", "")
            try:
                process, lost = self._start()
                if self.running:
                    lost = self._serve(process)
            except Exception as error:  # too many open files, say: like a worker that is lost, and tried again
                log.exception("%s", self.name)
                lost = "failed", failures.describe(error)
            self._end(process, lost)
            with self._changed:
                self._changed.wait_for(lambda: self._closing, max(0.0, self._backoff.until - now()))

    def _start(self) -> tuple[WorkerProcess, tuple[str, str]]:
        """Another worker; where it is not `running` then, the reason and its detail, as far as they are known."""
        process = WorkerProcess(self.name, self.spec.threads, self._changed)
        with self._changed:
            self._process, self.starts, self._hung = process, self.starts + 1, False
            self._overdue = now() + self._limits.start
            self.tally.new_worker()
            if self._closing:
                process.kill()
            self._changed.notify_all()
        process.send(Order(self.spec.backend, self._artifacts, self._limits, self._prepared))
        reply = process.reply()
        with self._changed:
            self._overdue = 0.0
            if reply is None or reply[0] == "failed":
                self._prepared = False  # what was prepared may be what is wrong
                if reply is None:
                    return process, (f"did not start within {self._limits.start:g} s" if self._hung else "", "")
                return process, ("could not be loaded", reply[2])
            self._facts = reply[1]
            self._artifacts, self._prepared = self._facts.artifacts, True
            self.pace = self.pace or self._facts.seconds
            self.running = self.settled = True
            self._backoff.started()
            self.health.loaded()
            self._router.changed()
            self._changed.notify_all()
        log.info("%s: worker %d is ready", self.name, process.pid)
        return process, ("", "")

    def _end(self, process: WorkerProcess | None, lost: tuple[str, str]) -> None:
        """Leave no worker behind, and no job unanswered; `lost`: reason and detail, as far as they are known."""
        with self._changed:
            self.running, self._overdue = False, 0.0
            if not self._closing:
                self._router.changed()
            self._changed.notify_all()
        reason = process.end() if process else ""
        with self._changed:
            self._process, held = None, self._underway.let_go()
            self._trying = False
            if not self._closing:
                self._backoff.lost()
                self.health.failed(lost[0] or reason, lost[1])
                log.warning(
                    "%s: its worker is lost: %s", self.name, ": ".join(filter(None, (lost[0] or reason, lost[1])))
                )
            self.settled = True
            if not self._closing:
                self._router.changed()
            self._changed.notify_all()
        for job in held:
            job.refuse(ServiceError(f"{self.name} failed on the request"))

    def _serve(self, process: WorkerProcess) -> tuple[str, str]:
        """Until the worker is lost, with the reason and its detail where they are known, or the engine closes."""
        lost = None
        while lost is None:
            with self._changed:
                while (step := self._step(process)) is None:
                    pass
            lost = step()
            del step  # with the pixels of what was sent
        return lost

    def _step(self, process: WorkerProcess) -> Callable[[], tuple[str, str] | None] | None:
        """What is to be done now, which returns as `_serve` if the worker is lost by it; None after having waited."""
        if process.replies:
            return partial(self._reply, process.replies.popleft())
        if process.gone:
            return self._gone
        if self._closing and not self._underway:
            return lambda: ("", "")
        times = []
        if not (self._closing or self._trying or self._underway.full):
            jobs, look = self._waiting.take(self.name, self._may_take)
            if jobs:
                return self._sending(process, jobs)
            due = None if self._underway else self.health.next_trial()
            if due is not None and due <= now():
                self._trying, self._overdue = True, now() + self._patience()
                self._changed.notify_all()  # who keeps the time may sleep
                return partial(self._send, process, ("trial",))
            times = [moment - now() for moment in (look, due) if moment is not None]
        self._changed.wait(max(0.0, min(times)) if times else None)
        return None

    def _sending(self, process: WorkerProcess, jobs: list[Job]) -> Callable[[], None]:
        """Count jobs as sent; what sends them, which takes too long to be done under the condition."""
        if not self._underway:
            self._overdue = now() + self._patience()
        self._underway.add(jobs, [self._router.why(self, job) for job in jobs])
        self._changed.notify_all()
        return lambda: self._send(process, ("batch", Batch.of([(job.inputs[self.name], job.floor) for job in jobs])))

    @staticmethod
    def _send(process: WorkerProcess, message: tuple) -> None:
        process.send(message)  # where that fails the process is gone, which `_step` sees

    def _reply(self, reply: tuple) -> tuple[str, str] | None:
        """What the worker has said; reason and detail, as far as known, where that means that it is lost."""
        if reply[0] == "taken":
            with self._changed:
                self._underway.taken()
            return None
        return self._tried(reply[1]) if reply[0] == "trial" else self._batch(*reply[1:])

    def _may_take(self, job: Job, place: int) -> bool:
        return self._router.may_take(self, job, place)

    def _patience(self) -> float:
        return max(self._limits.hang, 10 * self._facts.most_seconds)

    def _batch(self, outcomes: list[Found | Failure], counts: dict[str, int]) -> tuple[str, str] | None:
        """Answer the first batch that is underway; returns as `_reply`."""
        with self._changed:
            sent, seconds = self._underway.first, self._underway.seconds
            self.tally.add(counts)
            self.tally.counts.update(batches=1, batched_requests=len(sent.jobs))
            self.pace += 0.2 * (seconds / len(sent.jobs) - self.pace)
            self.answered += sum(isinstance(outcome, Found) for outcome in outcomes)
            lost = self._judge([outcome for outcome in outcomes if isinstance(outcome, Failure)])
        for job, outcome, reason in zip(sent.jobs, outcomes, sent.why, strict=True):
            if isinstance(outcome, Found):
                self._answer(job, outcome, reason, sent.begun)
            else:
                self._router.failed(self, job, failures.PHRASES[outcome.kind], again=outcome.kind != failures.ERROR)
        with self._changed:
            self._underway.ended()
            self._overdue = now() + self._patience() if self._underway else 0.0
            if lost is not None:  # what came after it is not to blame
                self._waiting.put_back(self._underway.let_go())
            self._changed.notify_all()
        return lost

    def _gone(self) -> tuple[str, str]:
        """The worker has ended; returns as `_reply`."""
        with self._changed:
            left, self._overdue, self._trying = self._underway.clear(), 0.0, False
        for each in reversed(left):  # each that is put back goes in front
            self._unanswered(each)
        return (self._hung_for() if self._hung else ""), ""

    def _unanswered(self, sent: Sent) -> None:
        if self._hung and sent.begun:
            for job in sent.jobs:
                self._router.failed(self, job, self._hung_for())
            return
        if not (sent.begun or self._closing or any(job.returned for job in sent.jobs)):
            for job in sent.jobs:
                job.returned = True
            self._waiting.put_back(sent.jobs)  # the worker died before it took them up
            return
        error = WorkerLost(f"the worker of {self.name} died with the request")
        for job in sent.jobs:
            job.refuse(NotReady("the service is closing") if self._closing else error)

    def _hung_for(self) -> str:
        return f"did not answer within {self._patience():.1f} s"

    def _answer(self, job: Job, found: Found, why: str, begin: float) -> None:
        times = {"queue": 1000 * (begin - job.queued), "preprocess": job.preprocess} | found.milliseconds
        cached = found.cached_prompts, found.cached_image
        job.answer(Answer(job.prompts, found.candidates, job.size, self.name, why, times, found.batch, *cached))

    def _tried(self, failure: Failure | None) -> tuple[str, str] | None:
        """A trial has ended; returns as `_reply`."""
        with self._changed:
            self._trying, self._overdue = False, 0.0
            self.tally.counts["trials"] += 1
            return self._judge([] if failure is None else [failure], trial=True)

    def _judge(self, found: list[Failure], trial: bool = False) -> tuple[str, str] | None:
        """What the failures of a batch or a trial, or their absence, mean; returns as `_batch`."""
        for failure in found:
            log.warning("%s: %s", self.name, failure.reason)
        lost = self.health.judge(found, trial)
        self._router.changed()
        self._changed.notify_all()
        return lost
