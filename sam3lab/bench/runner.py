"""Measure a list of cases: each round of each in a process of its own, interleaved, resumable, gated by parity."""

import contextlib
import json
import math
import os
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from sam3lab import backends, nvml
from sam3lab.bench import environment, inputs, parity, plan, prepare, process, records, scene_inputs
from sam3lab.bench.case import Case
from sam3lab.bench.progress import Progress
from sam3lab.cores import available_cores
from sam3lab.errors import UserError
from sam3lab.model.checkpoint import weight_bytes
from sam3lab.scenes import store

if TYPE_CHECKING:
    import pandas as pd

PREPARE_TIMEOUT = 3600.0
CORES_A_JOB = 2  # of those that prepare, or answer, at the same time
MEMORY_A_JOB = 4  # times the weights: what an export takes at most
SMALL = 100_000_000  # bytes of weights under which one core does


def measure(
    cases: Sequence[Case],
    run_dir: Path,
    rounds: int = 5,
    min_samples: int = 50,
    min_seconds: float = 2.0,
    seed: int = 0,
    timeout: float = 900.0,
    progress: bool = True,
    retry_failed: bool = False,
    reference: str = plan.REFERENCE,
    most_rounds: int = 0,
) -> "pd.DataFrame":
    """Measure what of the cases is not yet measured in `run_dir`; the rows of all of them in their order, see results.load.

    Each stage of each case gets at least `min_samples` samples and `min_seconds` seconds over its `rounds` together, of
    which fewer count where the host's core was slowed (see host_speed).
    Every round has an order of its own, seeded. Where `most_rounds` is more than `rounds`, a case whose pipeline's median
    has an interval of more than statistics.TOLERANCE to either side gets further ones, up to so many, as nvbench goes on
    until its noise is small. `timeout`: seconds for one case-round. The fp32 case of the backend
    `reference` is added where it is not among the cases, and an A/A twin of one that runs where there is none. Accuracy
    cases run once, whatever the rounds. What cannot run here is recorded as skipped; a worker that crashes or hangs is
    recorded as failed, its case's later rounds are left out, and the run goes on (see
    results.failures). `retry_failed` tries recorded failures again; what was skipped is, whenever it can be run.

    A run that was interrupted, by Ctrl-C or kill -9, is resumed by the same call: finished case-rounds are kept, and the
    worker that ran is gone. Raises UserError for bad arguments, an unknown backend, checkpoint or image, a prompt that
    does not fit, a split that is not stored, a directory that another process measures in, or one with results of another
    environment; and before any process is started for a case on a GPU that other processes use.
    """
    from sam3lab.bench import results

    cases = list(cases)
    for name, value, least in (
        ("rounds", rounds, 1),
        ("most_rounds", most_rounds, 0),
        ("min_samples", min_samples, 1),
        ("min_seconds", min_seconds, 0),
    ):
        if not least <= value < math.inf:
            raise UserError(f"{name} must be a finite number of at least {least}, not {value}")
    if not timeout > 0:
        raise UserError(f"timeout must be more than 0 seconds, not {timeout}")
    if not cases:
        raise UserError("there are no cases to measure; give at least one")
    # What is misspelt is refused before anything is prepared, which may take minutes.
    for name in dict.fromkeys([reference, *(case.backend for case in cases)]):
        backends.get(name)
    for split in dict.fromkeys(case.split[0] for case in cases if case.mode == "accuracy"):
        store.load_split(split, store.SCENES)
    run_dir = Path(run_dir).resolve()
    with records.locked(run_dir):
        run = _Run(run_dir, timeout, -(-min_samples // rounds), min_seconds / rounds, reference)
        planned = plan.with_references(cases, reference)
        whole = run.measure(planned, rounds, max(rounds, most_rounds), seed, progress, retry_failed)
    rows = results.load(run_dir)
    place = {case.id: i for i, case in enumerate(whole)}
    rows = rows[rows["case"].isin(place)]
    return rows.sort_values("case", key=lambda ids: ids.map(place), kind="stable", ignore_index=True)


def release(run_dir: Path) -> list[str]:
    """The labels of what a run is to try again: what failed, which `measure` then tries once more, and what was skipped
    and could be run by now. Empty where the run is not begun.

    Raises UserError where there is something, but the environment is no longer the run's, and where it is being measured.
    """
    if not (run_dir / "results").exists():
        return []
    with records.locked(run_dir):
        found = [mark for mark in records.marks(run_dir) if mark["status"] in records.FAILED or _runs_now(mark)]
        if found:
            records.environments(run_dir, environment.collect())
        records.release_failures(run_dir)
    return [mark["label"] for mark in found]


def _runs_now(mark: records.Mark) -> bool:
    """Whether a mark is of a case that was skipped, and its backend no longer refuses."""
    if mark["status"] != "skipped":
        return False
    case = Case.from_json(mark["definition"])
    try:
        return backends.get(case.backend).unavailable(case.device, case.precision) is None
    except UserError:  # there is no such backend any more
        return False


@dataclass
class _Run:
    """One call of `measure` on a locked run directory."""

    run_dir: Path
    timeout: float
    samples: int
    seconds: float
    reference: str
    prepared: dict[tuple, dict[str, Any]] = field(default_factory=dict)
    host_look: float | None = None  # ms, see host_speed

    def measure(
        self, cases: list[Case], rounds: int, most_rounds: int, seed: int, shown: bool, retry_failed: bool
    ) -> list[Case]:
        """All cases of the plan, after what was left of it is measured."""
        if any(case.device == "cuda" for case in cases):
            nvml.refuse_others()
        self.environment = records.adopt_environment(self.run_dir, environment.collect())
        for case in [*cases, *map(plan.twin, cases)]:
            records.forget_failure(self.run_dir, case, whichever=retry_failed)

        talk = Progress([], shown)
        self._prepare_at_once(cases, rounds, talk)
        able = [case for case in cases if self._prepare(case, rounds, talk)]
        steps = plan.steps(cases, rounds, seed)
        undone = self._undone(steps)
        if len(undone) < len(steps):
            talk.say(f"{len(steps) - len(undone)} of {len(steps)} case-rounds are there already")
        left = [(case, round_) for case, round_ in undone if case in able]
        with Progress(left, shown, self._past(able)) as progress:
            self._answer_untimed(able, progress)
            for case, round_ in self._undone(left):
                if round_ == 0:
                    self._step(case, round_, progress)
            twin = None if any(case.replica for case in cases) else self._twin(able)
            cases = [*cases, twin] if twin else cases
            if twin and self._prepare(twin, rounds, progress):
                able.append(twin)
                added = self._undone(plan.steps([twin], rounds, seed))
                progress.add(added)
                if (twin, 0) in added:
                    self._step(twin, 0, progress)
            # Every case has answered now, if it can: what computes something else is known before most is measured.
            self._judge(able, progress)
            for step in self._undone(plan.steps(able, rounds, seed, first=1)):
                self._step(*step, progress)
            for round_ in range(rounds, most_rounds):
                if not (unsure := self._unsure(able)):
                    break
                left = self._undone(plan.steps(unsure, round_ + 1, seed, first=round_))
                progress.add(left)
                for step in left:
                    self._step(*step, progress)
        return cases

    def _unsure(self, cases: list[Case]) -> list[Case]:
        """Those of the cases whose pipeline's median is not known to within statistics.TOLERANCE, by its interval."""
        from sam3lab.bench import results, statistics

        samples = dict(list(statistics.select(results.load(self.run_dir), "pipeline").groupby("case")))
        medians = {case: statistics.median_ci(samples[case.id]) for case in cases if case.id in samples}
        return [case for case, median in medians.items() if median.high > (1 + statistics.TOLERANCE) * median.value]

    def _undone(self, steps: list[tuple[Case, int]]) -> list[tuple[Case, int]]:
        return [(case, round_) for case, round_ in steps if not records.is_done(self.run_dir, case, round_)]

    def _twin(self, cases: list[Case]) -> Case | None:
        """The A/A twin that the run has, or else of the first case that ran, since one that crashes says nothing of noise;
        if it can be not in fp32, in which a case takes longest on a GPU.
        """
        own = [case for case in cases if not case.once and case.mode != "cold"]
        known = (case for case in own if records.case_marks(self.run_dir, plan.twin(case)))
        ran = [case for case in own if records.is_done(self.run_dir, case, 0)]
        chosen = next(known, None) or min(ran, key=lambda case: case.precision == "fp32", default=None)
        return chosen and plan.twin(chosen)

    def _prepare(self, case: Case, rounds: int, talk: Progress) -> bool:
        """Whether the case can run here. What it loads is on disk then, if any of its rounds are still to be run."""
        if failure := records.failure(self.run_dir, case):
            return failure["during"] == "measure"
        if self._is_done(case, rounds):
            return True
        answer = self._answer(case, talk)
        if "artifacts" not in answer:
            facts = {"during": "prepare", "log": answer["log"], "environment": self.environment}
            records.record_failure(self.run_dir, case, 0, answer["status"], answer["reason"], **facts)
            talk.say(f"{case.label}: {answer['status']}, {answer['reason']}")
            return False
        self._same_weights(case, answer["checkpoint_sha256"])
        inputs.keep(self.run_dir, case, Path(answer["artifacts"]["checkpoint"]))
        return True

    def _is_done(self, case: Case, rounds: int) -> bool:
        return all(records.is_done(self.run_dir, case, round_) for round_ in range(1 if case.once else rounds))

    def _prepare_at_once(self, cases: list[Case], rounds: int, talk: Progress) -> None:
        """Ask for what the cases load, several at a time where there are cores for it, since exports and compilation take
        minutes. A checkpoint's first case goes alone: it may have to write the checkpoint.
        """
        waiting: dict[tuple, Case] = {}
        for case in cases:
            if not records.failure(self.run_dir, case) and not self._is_done(case, rounds):
                waiting.setdefault(self._key(case), case)
        if min(available_cores(), len(waiting)) < 2:
            return
        largest = 0
        for checkpoint in dict.fromkeys(case.checkpoint for case in waiting.values()):
            key = next(key for key, case in waiting.items() if case.checkpoint == checkpoint)
            answer = self._answer(waiting.pop(key), talk)
            if "artifacts" in answer:
                largest = max(largest, weight_bytes(Path(answer["artifacts"]["checkpoint"])))
        jobs = available_cores()
        if largest > SMALL:
            jobs = min(jobs // CORES_A_JOB, psutil.virtual_memory().available // (MEMORY_A_JOB * largest))
        if min(jobs, len(waiting)) < 2:
            return
        talk.say(f"preparing {len(waiting)} more kinds of case, {min(jobs, len(waiting))} at a time")

        def ask(item: tuple[tuple, Case]) -> None:
            self.prepared[item[0]] = self._ask(item[1])

        _side_by_side(ask, list(waiting.items()), jobs)

    def _answer_untimed(self, cases: list[Case], progress: Progress) -> None:
        """What measures no time answers side by side where a GPU computes, since one process leaves most of that idle.

        One that fails so may have lacked memory: it stays undone, and answers again in its turn, by itself.
        """
        left = [case for case, _ in self._undone(plan.steps(cases, 1, 0)) if case.once and case.device == "cuda"]
        jobs = available_cores() // CORES_A_JOB
        if min(jobs, len(left)) < 2:
            return
        nvml.refuse_others()
        _side_by_side(lambda case: self._step(case, 0, progress, alone=False), left, jobs)

    def _answer(self, case: Case, talk: Progress) -> dict[str, Any]:
        """What bench.prepare says of the case, and its log; asked once for what loads the same things."""
        key = self._key(case)
        if key not in self.prepared:
            talk.say(f"preparing {case.label}")
            self.prepared[key] = self._ask(case)
        if self.prepared[key].get("status") == "refused":
            raise UserError(self.prepared[key]["reason"])
        return self.prepared[key]

    def _key(self, case: Case) -> tuple:
        """What decides what a case loads, and for which shapes it is compiled."""
        shapes = (case.batch, len(case.prompts)) if prepare.compiles(case) else ()
        loads = case.backend, case.checkpoint, case.precision, case.resolution, case.device, self._threads(case)
        return loads + shapes

    def _ask(self, case: Case) -> dict[str, Any]:
        job, log = {"case": case.to_json(), "threads": self._threads(case)}, self._log(f"{case.id}-prepare")
        outcome, answer = self._child("prepare", job, log, PREPARE_TIMEOUT, self._threads(case), offline=False)
        if outcome.status != "done":
            answer = {"status": outcome.status, "reason": f"while preparing: {outcome.reason}"}
        return answer | {"log": str(log.relative_to(self.run_dir))}

    def _step(self, case: Case, round_: int, progress: Progress, alone: bool = True) -> None:
        """One case-round: a process, then its record; where others run beside it, none of a failure."""
        if records.failure(self.run_dir, case):
            progress.end(case, round_)  # it failed before, and would again
            return
        progress.start(case, round_)
        answer = self._answer(case, progress)
        outputs = records.outputs_path(self.run_dir, case)
        made = outputs.with_name(f".{outputs.name}")  # those that are there stay until there are others
        outputs.parent.mkdir(exist_ok=True)
        job = {
            "case": case.to_json(),
            "artifacts": answer["artifacts"],
            "inputs": str(inputs.place(self.run_dir, case)),
            "truth": str(scene_inputs.truth_path(self.run_dir, case)) if case.mode == "accuracy" else None,
            "samples": self.samples,
            "seconds": self.seconds,
            "host_look_ms": self.host_look,
            "outputs": str(made) if round_ == 0 else None,
        }
        log = self._log(f"{case.id}-r{round_}")
        if case.device == "cuda" and alone:
            nvml.refuse_others()
        outcome, answered = self._child("worker", job, log, self.timeout, self._threads(case), offline=True)
        facts = {
            "during": "measure",
            "log": str(log.relative_to(self.run_dir)),
            "seconds": round(outcome.seconds, 3),
            "environment": self.environment,
            "checkpoint_sha256": answer["checkpoint_sha256"],
        }
        if outcome.status == "done":
            measurements = answered["measurements"]
            looks = [self.host_look, answered["facts"].get("host_look_ms")]
            self.host_look = min((look for look in looks if look is not None), default=None)
            if round_ == 0:
                parity.forget(self.run_dir, case)
                made.replace(outputs)
            records.record(self.run_dir, case, round_, measurements, worker=answered["facts"], **facts)
            progress.end(case, round_, outcome.seconds)
        elif alone:
            status = "timeout" if outcome.status == "timeout" else "failed"
            facts["last_lines"] = process.tail(log)
            records.record_failure(self.run_dir, case, round_, status, outcome.reason, **facts)
            progress.end(case, round_, outcome.seconds, f"{status}, {outcome.reason}; see {log}")

    def _judge(self, cases: list[Case], progress: Progress) -> None:
        """Compare every case whose outputs are there with its reference, which answers again if its own were not kept."""
        there = [case for case in cases if records.is_done(self.run_dir, case, 0)]
        pairs = [(case, plan.reference_of(case, there, self.reference)) for case in there]
        pairs = [(case, reference) for case, reference in pairs if reference is not None]
        new = (reference for case, reference in pairs if not records.verdict_path(self.run_dir, case).exists())
        for reference in list(dict.fromkeys(new)):
            if not records.outputs_path(self.run_dir, reference).exists():
                progress.add([(reference, 0)])
                self._step(reference, 0, progress)
        for case, reference in pairs:
            if not (
                records.verdict_path(self.run_dir, case).exists()
                or records.outputs_path(self.run_dir, reference).exists()
            ):
                progress.say(f"{case.label}: not compared, since {reference.label} failed to answer again")
            elif not parity.judge(self.run_dir, case, reference)["passed"]:
                progress.say(f"{case.label}: not shown to compute what {reference.label} does; see results.failures")

    def _child(
        self, module: str, job: dict[str, Any], log: Path, timeout: float, threads: int, offline: bool
    ) -> tuple[process.Outcome, dict[str, Any]]:
        """How the process ended, and what it wrote if it ended well."""
        work = self.run_dir / "work"
        work.mkdir(exist_ok=True)
        out, job_file = work / f"{log.stem}.out.json", work / f"{log.stem}.job.json"
        out.unlink(missing_ok=True)
        job_file.write_text(json.dumps(job | {"parent": os.getpid(), "out": str(out)}))
        outcome = process.run(f"sam3lab.bench.{module}", [str(job_file)], log, timeout, threads, offline)
        if outcome.status != "done":
            return outcome, {}
        if not out.exists():  # an os._exit(0) in a runtime, say
            return process.Outcome("failed", "ended without an answer", outcome.seconds), {}
        answer = json.loads(out.read_text())
        out.unlink()
        job_file.unlink()  # kept after a failure, to look into
        return outcome, answer

    def _same_weights(self, case: Case, sha256: str) -> None:
        for mark in records.marks(self.run_dir):
            known = mark.get("checkpoint_sha256", sha256)
            if mark["definition"]["checkpoint"] == case.checkpoint and known != sha256:
                raise UserError(
                    f"the checkpoint {case.checkpoint} is not the one that {self.run_dir} was begun with "
                    "(its SHA-256 has changed); choose another run name"
                )

    def _past(self, cases: list[Case]) -> dict[str, list[float]]:
        known = {case.id: [] for case in cases}
        for mark in records.marks(self.run_dir):
            if mark["status"] == "done" and mark["case"] in known:
                known[mark["case"]].append(mark["seconds"])
        return known

    def _log(self, name: str) -> Path:
        return self.run_dir / "logs" / f"{name}.log"

    @staticmethod
    def _threads(case: Case) -> int:
        return case.threads or available_cores()


def _side_by_side(do: Callable[[Any], None], items: Iterable[Any], jobs: int) -> None:
    """`do` of each item, so many at a time."""
    left: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for item in items:
        left.put(item)

    def work() -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                do(left.get_nowait())

    # daemons, since Ctrl-C is not to wait for them: a child dies with the thread that started it
    threads = [threading.Thread(target=work, daemon=True) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
