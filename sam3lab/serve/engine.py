"""An engine seen from the server: its worker, started again whenever it is lost, and the thread that feeds it."""

import logging
import threading
from typing import TYPE_CHECKING

from sam3lab.backends import Artifacts
from sam3lab.serve import failures
from sam3lab.serve.batch import Batch, Failure, Found
from sam3lab.serve.health import Backoff, Health
from sam3lab.serve.messages import Facts, Order
from sam3lab.serve.request import Answer, NotReady, ServiceError, WorkerLost
from sam3lab.serve.spec import EngineSpec, Limits
from sam3lab.serve.tally import OF_ENGINES, Tally
from sam3lab.serve.waiting import Job, Waiting, now
from sam3lab.serve.worker_process import WorkerProcess

if TYPE_CHECKING:
    from sam3lab.serve.routing import Routing

log = logging.getLogger("sam3lab.serve")

_GRACE = 5.0  # seconds that a batch may still take when the service closes


class Engine:
    """Serves what the router lets it take, until `close`. What others read of it is for reading under `changed`.

    running: its worker is there. settled: its first start has ended, well or not. held: the jobs that its worker has.
    pace: seconds a request, lately. starts: of its worker.
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
        self.running = self.settled = self._closing = self._hung = False
        self.held: list[Job] = []
        self.pace, self.starts, self.answered = 0.0, 0, 0
        self._facts: Facts | None = None
        self._backoff = Backoff()
        self._began = self._overdue = 0.0
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

    def busy_for(self) -> float:
        """Seconds that the batch which it holds is still expected to take."""
        return max(0.0, self.pace * len(self.held) - (now() - self._began)) if self.held else 0.0

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
            self._process, held, self.held = None, self.held, []
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
        while True:
            with self._changed:
                trial, jobs = False, []
                while not (self._closing or process.gone):
                    jobs, look = self._waiting.take(self.name, self._may_take)
                    due = self.health.next_trial()
                    trial = due is not None and due <= now()
                    if jobs or trial:
                        break
                    times = [moment - now() for moment in (look, due) if moment is not None]
                    self._changed.wait(max(0.0, min(times)) if times else None)
                if not jobs and not trial:
                    return "", ""
                why = [self._router.why(self, job) for job in jobs]
                self.held, self._began = jobs, now()
                self._overdue = self._began + self._patience()
                self._changed.notify_all()
            lost = self._batch(process, jobs, why) if jobs else self._trial(process)
            del jobs
            with self._changed:
                self.held, self._overdue = [], 0.0
                self._changed.notify_all()
            if lost is not None:
                return lost

    def _may_take(self, job: Job, place: int) -> bool:
        return self._router.may_take(self, job, place)

    def _patience(self) -> float:
        return max(self._limits.hang, 10 * self._facts.most_seconds)

    def _batch(self, process: WorkerProcess, jobs: list[Job], why: list[str]) -> tuple[str, str] | None:
        """Have the worker compute them. Reason and detail, as far as known, where the worker is lost; else None."""
        begin = now()
        batch = Batch.of([(job.inputs[self.name], job.floor) for job in jobs])
        reply = process.reply() if process.send(("batch", batch)) else None
        taken = reply is not None
        if taken:
            reply = process.reply()
        if reply is None:
            return self._batch_lost(jobs, taken)
        _, outcomes, counts = reply
        with self._changed:
            self.tally.add(counts)
            self.tally.counts.update(batches=1, batched_requests=len(jobs))
            self.pace += 0.2 * ((now() - begin) / len(jobs) - self.pace)
            self.answered += sum(isinstance(outcome, Found) for outcome in outcomes)
            lost = self._judge([outcome for outcome in outcomes if isinstance(outcome, Failure)])
        for job, outcome, reason in zip(jobs, outcomes, why, strict=True):
            if isinstance(outcome, Found):
                self._answer(job, outcome, reason, begin)
            else:
                self._router.failed(self, job, failures.PHRASES[outcome.kind], again=outcome.kind != failures.ERROR)
        return lost

    def _batch_lost(self, jobs: list[Job], taken: bool) -> tuple[str, str]:
        if self._hung:
            for job in jobs:
                self._router.failed(self, job, self._hung_for())
            return self._hung_for(), ""
        if not taken and not self._closing and not any(job.returned for job in jobs):
            for job in jobs:
                job.returned = True
            self._waiting.put_back(jobs)  # the worker died before it had them
            return "", ""
        error = WorkerLost(f"the worker of {self.name} died with the request")
        for job in jobs:
            job.refuse(NotReady("the service is closing") if self._closing else error)
        return "", ""

    def _hung_for(self) -> str:
        return f"did not answer within {self._patience():.1f} s"

    def _answer(self, job: Job, found: Found, why: str, begin: float) -> None:
        times = {"queue": 1000 * (begin - job.queued), "preprocess": job.preprocess} | found.milliseconds
        cached = found.cached_prompts, found.cached_image
        job.answer(Answer(job.prompts, found.candidates, job.size, self.name, why, times, found.batch, *cached))

    def _trial(self, process: WorkerProcess) -> tuple[str, str] | None:
        """Try whether it works again; returns as `_batch`."""
        reply = process.reply() if process.send(("trial",)) else None
        with self._changed:
            self.tally.counts["trials"] += 1
            if reply is None:
                return (self._hung_for() if self._hung else ""), ""
            return self._judge([] if reply[1] is None else [reply[1]], trial=True)

    def _judge(self, found: list[Failure], trial: bool = False) -> tuple[str, str] | None:
        """What the failures of a batch or a trial, or their absence, mean; returns as `_batch`."""
        for failure in found:
            log.warning("%s: %s", self.name, failure.reason)
        lost = self.health.judge(found, trial)
        self._router.changed()
        self._changed.notify_all()
        return lost
