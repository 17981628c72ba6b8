"""How far a run is and how long it will take, on standard error: a bar on a terminal, plain lines elsewhere."""

import sys
import threading
import time
from collections import defaultdict

from sam3lab.bench.case import Case


class Progress:
    """Told of every case-round as it starts and ends; `total` counts all of them, `past` knows earlier durations.

    Nothing is drawn while a worker runs: a display that ticks would take time from what is measured.
    """

    def __init__(self, steps: list[tuple[Case, int]], shown: bool, past: dict[str, list[float]] | None = None):
        self._left = list(steps)
        self._total = len(steps)
        self._seconds: dict[str, list[float]] = defaultdict(list, past or {})
        self._shown = shown
        self._began = time.monotonic()
        self._live = None
        self._lock = threading.Lock()  # several start and end at the same time where they run side by side
        if shown and steps and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
            from rich.progress import Progress as Bar

            columns = BarColumn(bar_width=30), MofNCompleteColumn(), TextColumn("{task.description}")
            self._live = Bar(*columns, console=Console(stderr=True), auto_refresh=False)
            self._task = self._live.add_task("", total=self._total)

    def __enter__(self) -> "Progress":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *error) -> None:
        if self._live:
            self._live.stop()
        if self._total and not self._left:
            self.say(f"measured in {_spell(time.monotonic() - self._began)}")

    def add(self, steps: list[tuple[Case, int]]) -> None:
        """More to do than was known at first."""
        self._left += steps
        self._total += len(steps)
        if self._live:
            self._live.update(self._task, total=self._total)

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._live:
            self._live.console.print(text, highlight=False, markup=False)
        elif self._shown:
            print(text, file=sys.stderr, flush=True)

    def start(self, case: Case, round_: int) -> None:
        if self._live:
            with self._lock:
                text = f"{self.estimate()}, {case.label}, round {round_}"
            self._live.update(self._task, description=text, refresh=True)

    def end(self, case: Case, round_: int, seconds: float | None = None, note: str = "") -> None:
        """One case-round less; `seconds` None where it was not tried."""
        with self._lock:
            self._end(case, round_, seconds, note)

    def _end(self, case: Case, round_: int, seconds: float | None, note: str) -> None:
        self._left.remove((case, round_))
        if seconds is not None:
            self._seconds[case.id].append(seconds)
        if self._live:
            self._live.update(self._task, advance=1, description=self.estimate(), refresh=True)
        if note:
            self.say(f"{case.label}, round {round_}: {note}")
        elif not self._live and seconds is not None:
            done = self._total - len(self._left)
            self.say(f"[{done}/{self._total}] {case.label}, round {round_}: {seconds:.1f} s; {self.estimate()}")

    def estimate(self) -> str:
        """How long the rest will take, in words: a case as long as before, one that has not run as long as the others."""
        known = [value for values in self._seconds.values() for value in values]
        if not known:
            return "no estimate yet"
        usual = sum(known) / len(known)
        means = {case: sum(values) / len(values) for case, values in self._seconds.items() if values}
        return f"about {_spell(sum(means.get(case.id, usual) for case, _ in self._left))} left"


def _spell(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"
