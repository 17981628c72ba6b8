"""The report of stored results as Markdown, beside its figures, where a repository's readers see both without any tool."""

import re
from pathlib import Path

from sam3lab.bench.files import write_atomically
from sam3lab.study import report

_HEADING = re.compile(r"^(#+ )", re.MULTILINE)


def write(run_dir: Path, target: Path, source: Path) -> Path:
    """Write `target`/report.md from the executed copies in `run_dir`/notebooks: prose, tables and links to the figures in
    `target`, without code and logs. source: where the results are stored. Returns its path.
    """
    parts = [
        f"# Results of `{source.name}`",
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
    write_atomically(path, ("\n\n".join(part.strip() for part in parts) + "\n").encode())
    return path
