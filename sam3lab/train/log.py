"""The training log, a CSV file with one row for every few steps, and how progress is shown."""

import csv
import sys
import time
from pathlib import Path

from sam3lab.errors import UserError
from sam3lab.train.losses import WEIGHTS
from sam3lab.train.validate import NAMES

COLUMNS = ("step", "seconds", "learning_rate", "loss", *WEIGHTS, "gradient_norm", *(f"val_{name}" for name in NAMES))


class Log:
    """Appends rows to a CSV file with the columns COLUMNS; what a row does not have stays empty.

    Rows after `step` are removed first: a run that stopped between saves repeats those steps.
    """

    def __init__(self, path: Path, step: int = 0):
        kept = [row for row in read(path) if int(row["step"]) <= step] if step and path.exists() else []
        self.path = path
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(kept)

    def add(self, **values: float) -> None:
        """Append a row; numbers with six significant digits."""
        texts = {name: f"{value:.6g}" if isinstance(value, float) else str(value) for name, value in values.items()}
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, COLUMNS).writerow(texts)


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a log. Raises UserError where it is none."""
    try:
        with Path(path).open(newline="") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise UserError(f"{path} is no training log of this version: start again without --resume")
            return list(reader)
    except (OSError, csv.Error) as error:
        raise UserError(f"cannot read the training log {path}: {error}") from error


def validations(rows: list[dict[str, str]]) -> list[dict[str, float]]:
    """The rows that carry validation metrics: step, seconds and the metrics by name, as numbers."""
    names = ("step", "seconds", *(f"val_{name}" for name in NAMES))
    return [{name: float(row[name]) for name in names} for row in rows if row[f"val_{NAMES[0]}"]]


class Progress:
    """A progress bar on a terminal, plain lines elsewhere."""

    def __init__(self, steps: int, done: int):
        self.steps, self.bar, self.last = steps, None, (done, time.monotonic())
        if sys.stdout.isatty():
            from rich.progress import Progress as Bar

            self.bar = Bar()
            self.task = self.bar.add_task("training", total=steps, completed=done)
            self.bar.start()

    def show(self, step: int, values: dict[str, float]) -> None:
        """Tell how far the run is and what was measured."""
        (before, then), self.last = self.last, (step, time.monotonic())
        rate = (step - before) / max(self.last[1] - then, 1e-9)
        line = f"step {step}/{self.steps}  {rate:.2f} steps/s  " + "  ".join(f"{k} {v:.4g}" for k, v in values.items())
        if self.bar:
            self.bar.update(self.task, completed=step)
            self.bar.console.print(line)
        else:
            print(line, flush=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self.bar:
            self.bar.stop()
