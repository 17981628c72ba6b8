"""SAM 3 as a service: requests in, answers out, through one engine or, when that one cannot, through another."""

import logging
import math
import threading
from collections import Counter
from concurrent.futures import Future

from sam3lab import backends
from sam3lab.backends import Artifacts
from sam3lab.errors import UserError
from sam3lab.model.checkpoint import image_size, resolve
from sam3lab.postprocess import check_thresholds
from sam3lab.serve.engine import Engine
from sam3lab.serve.preprocess import Preprocessor
from sam3lab.serve.request import FLOOR, Answer, Busy, Late, NotReady, Request, WorkerLost
from sam3lab.serve.routing import Routing
from sam3lab.serve.spec import EngineSpec, Limits
from sam3lab.serve.tally import OF_ENGINES, OF_SERVICE
from sam3lab.serve.waiting import Job, Waiting, busy, now

log = logging.getLogger("sam3lab.serve")

_OUTCOMES = {Late: "late", WorkerLost: "worker_lost", NotReady: "not_ready"}


class Service:
    """Answers requests through `primary`; through `fallback`, if there is one, while `primary` cannot.

    Each engine is a process of its own, with a backend, two caches of features and its own threads; its backend is
    loaded and warmed up before it takes requests, and it is started again when it is lost. Everything may be called from
    any thread. While it runs, PyTorch computes with one thread in this process, whose cores are the engines'.
    """

    def __init__(self, primary: EngineSpec, fallback: EngineSpec | None = None, limits: Limits = Limits()):  # noqa: B008
        self._specs = (primary, fallback) if fallback else (primary,)
        names = [spec.name for spec in self._specs]
        if len(set(names)) < len(names):
            raise UserError(f"both engines are called {names[0]}: give one of them another name")
        self.engines: tuple[str, ...] = tuple(names)
        self._limits, self._changed = limits, threading.Condition(threading.RLock())
        self._waiting = Waiting(limits, self._changed)
        self._routing = Routing(limits, self._waiting, self._changed)
        self._outcomes: Counter = Counter()
        self._preprocessors: dict[tuple, Preprocessor] = {}
        self._keys: dict[str, tuple] = {}  # what an engine's inputs depend on: those with the same can share them
        self._closed, self._torch_threads = False, 0
        self._clock = threading.Thread(target=self._keep_time, name="sam3lab-deadlines", daemon=True)

    def start(self) -> None:
        """Start the engines and return when each of them is ready, or has failed while another is.

        Raises UserError for an unknown backend, checkpoint or resolution, and where no engine can be loaded.
        """
        import torch

        artifacts = [self._artifacts(spec) for spec in self._specs]
        with self._changed:
            if self._closed or self._routing.engines:
                return
            self._torch_threads = torch.get_num_threads()
            torch.set_num_threads(1)
            self._routing.engines = tuple(
                Engine(spec, loads, self._limits, self._waiting, self._changed, self._routing)
                for spec, loads in zip(self._specs, artifacts, strict=True)
            )
            engines = self._routing.engines
            for engine in engines:
                engine.start()
            self._clock.start()
            self._changed.wait_for(lambda: self._closed or all(engine.settled for engine in engines))
            if self._closed or any(engine.running for engine in engines):
                return
            reasons = [f"{each.name} {each.reason}: {each.health.detail}".rstrip(": ") for each in engines]
        self.close()
        raise UserError(f"no engine could be started: {'; '.join(reasons)}")

    def close(self) -> None:
        """Take nothing more, answer what waits with NotReady, let what is computed finish for a while, end the workers."""
        with self._changed:
            first, self._closed = not self._closed, True
            self._changed.notify_all()
        for engine in self._routing.engines:
            engine.stop()
        self._refuse_all()
        for engine in self._routing.engines:
            engine.close()
        self._refuse_all()  # what an engine put back in the meantime
        if first and self._torch_threads:
            import torch

            self._clock.join()
            torch.set_num_threads(self._torch_threads)

    def _refuse_all(self) -> None:
        for job in self._waiting.clear():
            job.refuse(NotReady("the service is closing"))

    @property
    def ready(self) -> bool:
        """Whether an engine is there to answer."""
        with self._changed:
            return not self._closed and self._routing.answering() is not None

    def check_admission(self) -> None:
        """Raises Busy where the queue is full, NotReady where no engine is there. Costs next to nothing."""
        self._counted(self._admit, "")

    def submit(self, request: Request) -> "Future[Answer]":
        """Accept a request: pre-processes it in this thread, and puts it into the queue.

        The future ends by the request's timeout at the latest, in its Answer, or in Late, WorkerLost, NotReady (the service
        closes) or another ServiceError. It can be cancelled until a worker has taken it. Raises UserError for what cannot
        be asked, Busy where the queue is full or would not be done in time, NotReady where no engine is there.
        """
        begin = now()
        self._check(request)
        self._counted(self._admit, request.engine)
        job = self._job(request, begin)
        self._counted(self._enqueue, job)
        return job.future

    def status(self) -> dict:
        """JSON-ready: ready, engine (that answers now, or empty), reason (why not the first one), queued,
        expected_wait (seconds) and of each engine what Engine.status says."""
        with self._changed:
            engine = self._routing.answering() if not self._closed else None
            started = bool(self._routing.engines) and not self._closed
            return {
                "ready": engine is not None,
                "engine": engine.name if engine else "",
                "reason": self._routing.reason() if started else "the service is closed or not started",
                "queued": len(self._waiting),
                "expected_wait": self._routing.expected_wait(),
                "engines": {each.name: each.status() for each in self._routing.engines},
            }

    def counters(self) -> dict[str, float]:
        """What happened since the start, by name, of all engines together; none of it ever decreases."""
        with self._changed:
            total = Counter(dict.fromkeys((*OF_SERVICE, *OF_ENGINES), 0))
            total.update(self._outcomes)
            total.update(self._routing.counts)
            for engine in self._routing.engines:
                total.update(engine.tally.counts)
                total["worker_restarts"] += max(0, engine.starts - 1)
        return {name: float(value) for name, value in total.items()}

    def _artifacts(self, spec: EngineSpec) -> Artifacts:
        backends.get(spec.backend)
        checkpoint = resolve(spec.checkpoint)
        resolution = spec.resolution or image_size(checkpoint)
        key = checkpoint, resolution
        self._keys[spec.name] = key
        if key not in self._preprocessors:
            self._preprocessors[key] = Preprocessor(*key)
        return Artifacts(checkpoint, resolution, spec.precision, spec.device, spec.threads)

    def _check(self, request: Request) -> None:
        check_thresholds(request.score_threshold, 0.5)
        if request.engine and request.engine not in self.engines:
            raise UserError(f"no engine is called {request.engine!r}; there are {', '.join(self.engines)}")
        if not request.prompts:
            raise UserError("there is no prompt; name what is to be found, as in 'cat'")
        if not (math.isfinite(request.timeout) and request.timeout > 0):
            raise UserError(f"the timeout {request.timeout} is no time; give more than 0 seconds")

    def _admit(self, name: str) -> None:
        with self._changed:
            engines = self._routing.engines
            if self._closed or not engines:
                raise NotReady("the service is closing" if self._closed else "the service is starting", 5.0)
            wanted = [engine for engine in engines if name in ("", engine.name)]
            if not any(engine.hopeful for engine in wanted):
                reasons = "; ".join(f"{engine.name} {engine.reason}" for engine in wanted)
                raise NotReady(f"no engine can answer now: {reasons}", min(engine.back_in() for engine in wanted))
            if name and wanted[0].state != "ready":
                raise NotReady(f"{name} {wanted[0].reason}", wanted[0].back_in())
            if self._waiting.full:
                raise busy(len(self._waiting), self._routing.expected_wait(name))

    def _job(self, request: Request, begin: float) -> Job:
        names = (request.engine,) if request.engine else self.engines
        made = {
            key: self._preprocessors[key].inputs(request.photograph, request.prompts)
            for key in {self._keys[name] for name in names}
        }
        timeout = min(request.timeout, self._limits.timeout)
        return Job(
            inputs={name: made[self._keys[name]] for name in names},
            prompts=tuple(request.prompts),
            size=request.photograph.shape[:2],
            floor=min(FLOOR, request.score_threshold),
            timeout=timeout,
            only=request.engine,
            preprocess=1000 * (now() - begin),
            deadline=begin + timeout,
        )

    def _enqueue(self, job: Job) -> None:
        with self._changed:
            if self._closed:
                raise NotReady("the service is closing")
            wait = self._routing.expected_wait(job.only)
            # where none waits it is tried whatever is expected, which may be from a worse time
            seconds = self._routing.expected_answer(job.only)
            if len(self._waiting) and now() + seconds >= job.deadline:
                raise Busy(
                    f"the request would be answered in about {seconds:.1f} s, and may take {job.timeout:.1f} s", wait
                )
            self._waiting.put(job, wait)
            self._outcomes["requests_accepted"] += 1
        job.future.add_done_callback(self._ended)

    def _counted(self, call, argument) -> None:
        """A refusal, counted on its way."""
        try:
            call(argument)
        except (Busy, NotReady) as error:
            with self._changed:
                self._outcomes["requests_busy" if isinstance(error, Busy) else "requests_not_ready"] += 1
            raise

    def _ended(self, future: "Future[Answer]") -> None:
        if future.cancelled():
            outcome = "cancelled"
        elif error := future.exception():
            outcome = next((name for kind, name in _OUTCOMES.items() if isinstance(error, kind)), "failed")
        else:
            outcome = "answered"
        with self._changed:
            self._outcomes[f"requests_{outcome}"] += 1

    def _keep_time(self) -> None:
        """Answers what is late, and ends workers that hang."""
        while True:
            with self._changed:
                if self._closed:
                    return
                moment, engines = now(), self._routing.engines
                held = [job for engine in engines for job in engine.held if not job.future.done()]
                late = self._waiting.late(moment) + [job for job in held if job.deadline <= moment]
                hung = [engine for engine in engines if (due := engine.overdue()) is not None and due <= moment]
                if not late and not hung:
                    times = [self._waiting.next_deadline(), *(engine.overdue() for engine in engines)]
                    times = [each for each in (*times, *(job.deadline for job in held)) if each is not None]
                    self._changed.wait(min(times) - moment if times else None)
                    continue
                late = [(job, self._routing.expected_wait(job.only)) for job in late]
            for job, wait in late:
                job.late(wait)
            for engine in hung:
                engine.end_hung()
