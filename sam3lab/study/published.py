"""The report of stored results as Markdown, beside its figures, where a repository's readers see both without any tool."""

import re
from pathlib import Path

from sam3lab import atomic
from sam3lab.study import report

_FIGURE = re.compile(r"^!\[.*\]\(([\w-]+)\.png\)$", re.MULTILINE)  # as Page.show writes it
_HEADING = re.compile(r"^(#+ )", re.MULTILINE)


def shown(folder: Path) -> set[str]:
    """The names of the figures that the report.md in a folder shows: those which were made with it. Empty without one."""
    path = folder / "report.md"
    return set(_FIGURE.findall(path.read_text(encoding="utf-8"))) if path.exists() else set()


def remove(folder: Path, names: set[str]) -> None:
    """Delete figures of these names."""
    for name in names:
        for suffix in ("svg", "png"):
            (folder / f"{name}.{suffix}").unlink(missing_ok=True)


def remove_others(target: Path, machines) -> None:
    """Delete what was made of machines that no longer have a folder in `target`, and nothing else that lies there."""
    for folder in {path.parent for path in target.glob("*/report.md")} - {target / name for name in machines}:
        title = (folder / "report.md").read_text(encoding="utf-8").partition("\n")[0]
        if title == _title(folder.name):
            remove(folder, shown(folder))
            for name in ("numbers.json", "report.md"):
                (folder / name).unlink(missing_ok=True)
            if not any(folder.iterdir()):
                folder.rmdir()


def _title(name: str) -> str:
    return f"# Results of `{name}`"


def write(run_dir: Path, target: Path, source: Path) -> Path:
    """Write `target`/report.md from the executed copies in `run_dir`/notebooks: prose, tables and links to the figures in
    `target`, without code and logs. source: where the results are stored. Returns its path.
    """
    parts = [
        _title(source.name),
        "Made by `sam3lab figures` from stored results; figures and numbers lie beside it.",
    ]
    for _, cells, shift in report.chapters(report.copies(run_dir)):
        for cell in cells:
            if cell.cell_type == "markdown":
                parts.append(_HEADING.sub("#" * shift + r"\1", cell.source))
            else:
                outputs = (output.get("data", {}) for output in cell.outputs)
                parts += [data["text/markdown"] for data in outputs if "text/markdown" in data]
    path = target / "report.md"
    atomic.write(path, ("\n\n".join(part.strip() for part in parts) + "\n").encode())
    return path
