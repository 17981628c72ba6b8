"""Tables as HTML, Markdown and CSV; a cell may be an Estimate."""

import html
import io
import math

from sam3lab.bench.statistics import Estimate
from sam3lab.study import numbers


def to_csv(frame) -> str:
    """The table with plain numbers: an estimate becomes three columns, the last two named "… low" and "… high"."""
    import pandas as pd

    plain = {}
    for name in frame.columns:
        values = list(frame[name])
        if any(isinstance(value, Estimate) for value in values):
            known = [
                value if isinstance(value, Estimate) else Estimate(math.nan, math.nan, math.nan) for value in values
            ]
            for suffix, end in (("", "value"), (" low", "low"), (" high", "high")):
                plain[f"{name}{suffix}"] = [getattr(value, end) for value in known]
        else:
            plain[name] = values
    buffer = io.StringIO()
    pd.DataFrame(plain).to_csv(buffer, index=False, lineterminator="\n", float_format="%.6g")
    return buffer.getvalue()


def _cell(value) -> tuple[str, bool]:
    """A cell's text, and whether it is a number."""
    if isinstance(value, Estimate):
        return numbers.interval(value.value, value.low, value.high), True
    if value is None:
        return "–", False
    if isinstance(value, bool):
        return "yes" if value else "no", False
    if isinstance(value, int | float) or hasattr(value, "dtype"):
        return (f"{value}" if isinstance(value, int) else numbers.digits(float(value))), True
    return html.escape(str(value), quote=False), False


def _cells(frame) -> tuple[list[list[tuple[str, bool]]], list[bool]]:
    """Every row's `_cell`s, and of which columns all are numbers."""
    cells = [[_cell(value) for value in row] for row in frame.itertuples(index=False, name=None)]
    return cells, [bool(cells) and all(line[place][1] for line in cells) for place in range(len(frame.columns))]


def to_markdown(frame, caption: str) -> str:
    """The table in GitHub's Markdown, below its caption: numbers at the right."""
    cells, right = _cells(frame)
    head = [html.escape(str(name), quote=False) for name in frame.columns]
    lines = [head, ["--:" if each else ":--" for each in right], *([text for text, _ in line] for line in cells)]
    rows = ["| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines]
    return "\n".join([f"*{html.escape(caption, quote=False)}*", "", *rows])


def to_html(frame, caption: str) -> str:
    """The table for a page: numbers at the right, the first column as row headings, and failed rows marked."""
    cells, right = _cells(frame)

    def tag(name: str, text: str, place: int, extra: str = "") -> str:
        look = ' class="number" style="text-align:right"' if right[place] else ' style="text-align:left"'
        return f"<{name}{extra}{look}>{text}</{name}>"

    head = "".join(tag("th", html.escape(str(name)), place, ' scope="col"') for place, name in enumerate(frame.columns))
    body = ""
    for line in cells:
        failed = ' class="failed"' if any(text == "FAILED" for text, _ in line) else ""
        first = tag("th", line[0][0], 0, ' scope="row"')
        body += (
            f"<tr{failed}>{first}{''.join(tag('td', line[place][0], place) for place in range(1, len(line)))}</tr>\n"
        )
    caption = html.escape(caption)
    return (
        f'<div class="scroll" role="region" aria-label="{caption}" tabindex="0"><table><caption>{caption}</caption>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>"
    )
