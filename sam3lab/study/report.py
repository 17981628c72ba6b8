"""The report: one HTML file, made from the executed notebooks of a run, that needs no network and no other file."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from sam3lab import atomic

ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
FINDINGS = "findings"
LAST = "90_report"  # the notebook whose cells tagged "opening" begin the report, and whose others end it


@dataclass
class Block:
    """One piece of a section. kind: prose or output (HTML), code, log or error (plain text)."""

    kind: str
    text: str


@dataclass
class Section:
    """A part of the report: its anchor, its title, its blocks, and its sub-headings as (anchor, title)."""

    anchor: str
    title: str = ""
    blocks: list[Block] = field(default_factory=list)
    headings: list[tuple[str, str]] = field(default_factory=list)


def write(run_dir: Path) -> Path:
    """Write `run_dir`/report.html from the executed copies in `run_dir`/notebooks; the path of the file.

    A notebook that did not complete is shown as far as it came, with its error, and is named at the top.
    """
    import jinja2

    books = copies(run_dir)
    troubles = [(name, found) for name, book in books.items() if (found := _problem(book))]
    sections = [section(anchor, cells, shift) for anchor, cells, shift in chapters(books)]
    if sections and sections[0].anchor == FINDINGS:
        sections[0].blocks.sort(key=lambda block: block.kind == "code")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sam3lab.study"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.get_template("report.html.j2")
    path = Path(run_dir) / "report.html"
    page = template.render(sections=sections, troubles=troubles, run=Path(run_dir).name)
    atomic.write(path, page.encode())
    return path


def copies(run_dir: Path) -> dict:
    """The executed copies in `run_dir`/notebooks, nbformat's, by their names."""
    import nbformat

    found = sorted((Path(run_dir) / "notebooks").glob("*.ipynb"))
    return {path.stem: nbformat.read(path, as_version=4) for path in found}


def chapters(books: dict) -> list[tuple[str, list, int]]:
    """(anchor, cells, shift of headings) of each part of the report on `copies`, in its order: what is found comes first."""
    parts = {name: book.cells for name, book in books.items()}
    found = []
    if LAST in parts:
        cells = parts.pop(LAST)
        first = {"opening", "injected-parameters"}
        opening = [cell for cell in cells if first & set(cell.metadata.get("tags", ()))]
        found.append((FINDINGS, opening, 0))
        parts[LAST] = [cell for cell in cells if cell not in opening]
    return found + [(name, cells, 1) for name, cells in parts.items()]


def problem(copy: Path) -> str:
    """Why an executed copy is not complete, in one line; empty if it is."""
    import nbformat

    return _problem(nbformat.read(copy, as_version=4)) if copy.exists() else "it never began"


def _problem(book) -> str:
    cells = [cell for cell in book.cells if cell.cell_type == "code" and cell.source]
    for cell in cells:
        for output in cell.outputs:
            if output.output_type == "error":
                return f"{output.ename}: {ANSI.sub('', output.evalue)}"
    return "" if all(cell.execution_count for cell in cells) else "it was stopped before its end"


def section(anchor: str, cells, shift: int = 1) -> Section:
    """The cells of a notebook as a section; `shift` is added to the level of every heading."""
    found = Section(anchor)
    for cell in cells:
        if cell.cell_type == "markdown":
            if "papermill-error-cell-tag" not in cell.metadata.get("tags", ()):  # papermill's note on an error
                found.blocks.append(Block("prose", _markdown(cell.source, found, shift)))
        elif cell.source:
            if found.blocks and found.blocks[-1].kind == "code":  # nothing was shown in between
                found.blocks[-1].text += f"\n\n{cell.source}"
            else:
                found.blocks.append(Block("code", cell.source))
            found.blocks += _outputs(cell, found, shift)
    found.title = found.title or anchor
    return found


def _outputs(cell, found: Section, shift: int) -> list[Block]:
    """What a code cell showed; all that it printed becomes one log, after the rest."""
    blocks, log = [], ""
    for output in cell.outputs:
        if output.output_type == "stream":
            log += ANSI.sub("", output.text)
        elif output.output_type == "error":
            blocks.append(Block("error", ANSI.sub("", "\n".join(output.traceback) or output.evalue)))
        else:
            data = output.data
            if "text/html" in data:
                blocks.append(Block("output", data["text/html"]))
            elif "text/markdown" in data:
                blocks.append(Block("prose", _markdown(data["text/markdown"], found, shift)))
            elif "text/plain" in data:
                blocks.append(Block("log", data["text/plain"]))
    return blocks + ([Block("log", log)] if log.strip() else [])


def _markdown(source: str, found: Section, shift: int) -> str:
    """Markdown as HTML, raw HTML in it shown as text; its headings are shifted, given anchors and noted in `found`."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(source)
    for opening, content, closing in zip(tokens, tokens[1:], tokens[2:], strict=False):
        if opening.type != "heading_open":
            continue
        level = int(opening.tag[1]) + shift
        opening.tag = closing.tag = f"h{level}"
        title = re.sub(r"[*_`]", "", content.content)
        slug = re.sub(r"\W+", "-", title.lower()).strip("-")
        if level == 2:
            opening.attrSet("id", found.anchor)
            found.title = title
        else:
            opening.attrSet("id", f"{found.anchor}-{slug}")
            found.headings.append((f"{found.anchor}-{slug}", title))
    return parser.renderer.render(tokens, parser.options, {})
