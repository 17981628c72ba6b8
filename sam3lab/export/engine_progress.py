"""How far TensorRT's builder is, on standard error: nested bars on a terminal, plain lines elsewhere."""

import sys
import threading
import time


class Progress:
    """Told of the phases of one build, from whatever thread the builder calls; `cancel` makes it stop at its next step.

    title: what is built. shown: whether anything is printed at all.
    """

    def __init__(self, title: str, shown: bool):
        self.cancelled = False
        self._title, self._shown = title, shown
        self._lock = threading.Lock()
        self._phases: dict[str, tuple[int, float]] = {}  # name to depth and start, of those that are open
        self._bars, self._tasks = None, {}
        if shown and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bars

            columns = TextColumn("{task.description}"), BarColumn(bar_width=30), MofNCompleteColumn()
            self._bars = Bars(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True)

    def __enter__(self) -> "Progress":
        if self._bars:
            self._bars.start()
        return self

    def __exit__(self, *error) -> None:
        if self._bars:
            self._bars.stop()

    def cancel(self) -> None:
        self.cancelled = True

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._bars:
            self._bars.console.print(f"{self._title}: {text}", highlight=False, markup=False)
        elif self._shown:
            print(f"{self._title}: {text}", file=sys.stderr, flush=True)

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        with self._lock:
            depth = self._phases[parent][0] + 1 if parent in self._phases else 0
            self._phases[phase] = depth, time.monotonic()
            if self._bars:
                label = phase if depth else f"{self._title}: {phase}"
                self._tasks[phase] = self._bars.add_task("  " * depth + label, total=steps)

    def step(self, phase: str) -> bool:
        """One step of a phase is done; False to stop the build."""
        with self._lock:
            if phase in self._tasks:
                self._bars.advance(self._tasks[phase])
        return not self.cancelled

    def finish(self, phase: str) -> None:
        """A phase has ended, with all its steps or without: on a terminal its bar goes."""
        with self._lock:
            depth, began = self._phases.pop(phase, (0, time.monotonic()))
            if phase in self._tasks:
                self._bars.remove_task(self._tasks.pop(phase))
        if depth == 0:
            self.say(f"{phase} took {time.monotonic() - began:.1f} s" + (" (cancelled)" if self.cancelled else ""))


def monitor(progress: Progress):
    """A tensorrt.IProgressMonitor that tells `progress`. It must live as long as the builder's configuration."""
    import tensorrt as trt

    class Monitor(trt.IProgressMonitor):
        def __init__(self):
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name, parent_phase, num_steps):
            progress.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name, step):
            return progress.step(phase_name)

        def phase_finish(self, phase_name):
            progress.finish(phase_name)

    return Monitor()
