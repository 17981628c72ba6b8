"""How far a study is: a bar and the notebooks' own lines in a terminal, plain lines elsewhere."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


class Screen:
    """Shows the study's lines, and is the file that papermill copies the notebooks' printed text to.

    The bar is drawn when something is said and at no other time: a display that ticks would disturb what is measured.
    """

    def __init__(self, total: int):
        self.total = total
        self.console = Console(soft_wrap=True, highlight=False)
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
        shown = self.console.is_terminal
        self.bar = Progress(*columns, console=self.console, auto_refresh=False, disable=not shown)
        self.task = self.bar.add_task("notebooks", total=total)
        self.rest = ""

    def __enter__(self) -> "Screen":
        self.bar.start()
        return self

    def __exit__(self, *error) -> None:
        self.bar.stop()

    def begin(self, number: int, notebook: str) -> None:
        self.bar.update(self.task, description=notebook)
        self.say(f"[{number}/{self.total}] {notebook}")

    def done(self, number: int, notebook: str, how: str) -> None:
        self.bar.update(self.task, completed=number)
        self.say(f"[{number}/{self.total}] {notebook}: {how}")

    def say(self, line: str) -> None:
        self.console.print(line, markup=False)
        self.console.file.flush()
        self.bar.refresh()

    def write(self, text: str) -> None:
        *lines, self.rest = (self.rest + text).replace("\r", "\n").split("\n")
        for line in filter(str.strip, lines):
            self.say(f"    {line}")

    def flush(self) -> None:
        """What is a whole line is shown already."""
