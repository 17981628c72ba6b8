"""Training from the first step, or from where a run stopped, to the last one or to a limit of time."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sam3lab.errors import UserError
from sam3lab.train import batches, vocabulary
from sam3lab.train.learner import Learner, Settings
from sam3lab.train.log import Log, Progress
from sam3lab.train.losses import WEIGHTS
from sam3lab.train.validate import validate

STATE, LOG = "state.pt", "log.csv"


def train(
    raw: dict,
    settings: Settings,
    output: Path,
    device: str = "cpu",
    *,
    workers: int = 0,
    compiled: bool = False,
    resume: bool = False,
    stop: int | None = None,
    seconds: float | None = None,
    log_every: int = 50,
    validate_every: int = 1000,
    save_every: float = 120.0,
    validation: int = 256,
) -> Learner:
    """Train a model of the configuration `raw` and return the learner; its state and log are in `output`.

    stop: step to stop at, before the schedule's end. seconds: wall time after which to stop; either way the state is
    saved and `resume` goes on from it, step for step as if it had not stopped. save_every: seconds between saves.
    validation: scenes of the validation split to score the averaged weights on. Ctrl-C stops after the step, and what was
    done is saved before KeyboardInterrupt is raised; a second one stops at once. Raises UserError where `output` holds
    another run, or none to resume.
    """
    began = time.monotonic()
    output.mkdir(parents=True, exist_ok=True)
    state = output / STATE
    if state.exists() and not resume:
        raise UserError(f"{output} holds a run already: give --resume to go on with it, or another --output")
    if resume and not state.exists():
        raise UserError(f"{output} has no {STATE} to go on from: leave --resume out, or name the run's --output")
    learner = Learner(raw, settings, device, compiled)
    spent = learner.restore(state)["seconds"] if resume else 0.0
    log, last = Log(output / LOG, learner.step), min(stop or settings.steps, settings.steps)
    progress, saved = Progress(last, learner.step), time.monotonic()
    word_ids = vocabulary.word_ids()
    held = list(_validation(validation, settings.batch, word_ids))
    cells = 4 * learner.model.detector.decoder.side
    drawn = batches.stream(learner.step, settings.batch, word_ids, workers)
    batch, terms = [], []

    def prepare() -> None:
        batch.append(batches.upload(next(drawn), device, learner.model.resolution, cells))

    def elapsed() -> float:
        return spent + time.monotonic() - began

    def save() -> None:
        learner.save(state, seconds=elapsed())

    def record(measured: dict[str, float]) -> None:
        values = _means(terms)
        terms.clear()
        log.add(step=learner.step, seconds=elapsed(), learning_rate=learner.learning_rate(), **values, **measured)
        progress.show(learner.step, values | measured)

    try:
        with _held_interrupts() as interrupts:
            if learner.step < last:
                prepare()
            while learner.step < last and not interrupts and (seconds is None or time.monotonic() - began < seconds):
                terms.append(learner.take(batch.pop(), prepare if learner.step + 1 < last else lambda: None))
                if learner.step % validate_every == 0 or learner.step == settings.steps:
                    record({f"val_{name}": value for name, value in _score(learner, held).items()})
                elif learner.step % log_every == 0 or learner.step == 1:
                    record({})
                if time.monotonic() - saved > save_every:
                    save()
                    saved = time.monotonic()
            if terms:
                record({})
            save()
        if interrupts:
            raise KeyboardInterrupt
    finally:
        progress.close()
        drawn.close()
    return learner


@contextmanager
def _held_interrupts() -> Iterator[list[int]]:
    """The first Ctrl-C goes into the list, so that no step is left half done; the next one interrupts as ever."""
    interrupts = []

    def note(number: int, frame) -> None:
        interrupts.append(number)
        signal.signal(signal.SIGINT, before)
        os.write(2, b"\nstopping after this step; Ctrl-C again stops at once\n")  # print may be what was interrupted

    before = signal.signal(signal.SIGINT, note)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)


def _validation(scenes: int, size: int, word_ids: dict[str, int]):
    from sam3lab.scenes.specification import SPLITS

    seeds = SPLITS["validation"][:scenes]
    for start in range(0, len(seeds), size):
        yield batches.draw(seeds[start : start + size], word_ids)


def _score(learner: Learner, held: list) -> dict[str, float]:
    return validate(learner.average, held, learner.device, learner.precision)


def _means(terms: list) -> dict[str, float]:
    """The mean of each loss term and of the gradient's norm since the last row, and of the weighted loss."""
    import torch

    *parts, norm = torch.stack(terms).mean(0).tolist()
    values = dict(zip(WEIGHTS, parts, strict=True))
    loss = sum(WEIGHTS[name] * value for name, value in values.items())
    return {"loss": loss, **values, "gradient_norm": norm}
