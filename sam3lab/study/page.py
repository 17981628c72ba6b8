"""`Page`: how a notebook shows what it found, and records the numbers that its prose names."""

import base64
import html
from pathlib import Path

from sam3lab import atomic
from sam3lab.study import claims, markup, numbers, style, tables


class Page:
    """What a notebook shows: prose, tables and figures, in the run's directory and below the cell.

    notebook: its name. run_dir: where its tables and numbers go. figures_dir: where its figures go. parameters: of the
    notebook, which prose may name. named: the (backend, precision) that it may name.
    """

    def __init__(self, notebook: str, run_dir: Path, figures_dir: Path, parameters: dict):
        self.notebook, self.run_dir, self.figures_dir, self.parameters = notebook, run_dir, figures_dir, parameters
        self.named: list[tuple[str, str]] = []
        self._own: dict[str, dict] = {}

    def record(self, key: str, what, unit: str = "", by=tables.BY) -> None:
        """Record for prose a number, a word, or a frame of estimates: for each row, a number `key`.<its `by`, dotted>.

        A frame with verdicts gives their words too, as `key`.<…>.words: "faster than", "slower than", …
        """
        if hasattr(what, "to_dict"):
            for row in what.to_dict("records"):
                place = ".".join([key, *(str(row[name]) for name in by)])
                self._own[place] = numbers.number(tables.Estimate(*(row[end] for end in tables.ENDS)), unit)
                if "verdict" in row:
                    self._own[f"{place}.words"] = numbers.number(numbers.WORDS[row["verdict"]])
        else:
            self._own[key] = numbers.number(what, unit)
        numbers.merge(self.run_dir / "numbers.json", self.notebook, self._own)

    def note(self, found: dict[str, tuple]) -> None:
        """`record` each {key: (what, unit)}."""
        for key, (what, unit) in found.items():
            self.record(key, what, unit)

    @property
    def numbers(self) -> dict[str, dict]:
        """Every number that prose may name: the run's, the article's (`claim.L1`), the runtimes' names, the parameters."""
        known = numbers.load(self.run_dir / "numbers.json") | claims.records()
        known |= {f"name.{name}": numbers.number(look.label) for name, look in style.RUNTIMES.items()}
        known |= {f"name.{'.'.join(row)}": numbers.number(look.label) for row, look in style.looks(self.named).items()}
        for name, value in self.parameters.items():
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            known[f"parameter.{name}"] = numbers.number(text)
        return known

    def say(self, *lines: str, each=("",)) -> None:
        """Show Markdown with the recorded numbers in place of their `{keys}`.

        each: items that take the place of `*` in the keys: every line is shown for every item. A line is left out where
        one of its numbers was not recorded, as that of a runtime which could not be run; it is told if none is left.
        """
        from IPython.display import Markdown, display

        known = self.numbers
        made = [
            numbers.KEY.sub(lambda key, item=item: key[0].replace("*", item), line) for line in lines for item in each
        ]
        kept = [numbers.fill(line, known) for line in made if numbers.keys(line) <= known.keys()]
        display(Markdown("\n".join(kept or ["*Nothing can be said here: the numbers were not measured in this run.*"])))

    def table(self, frame, name: str, caption: str) -> None:
        """Show a table (its cells may be estimates) and save it as tables/`name`.csv."""
        from IPython.display import display

        atomic.write(self.run_dir / "tables" / f"{name}.csv", markup.to_csv(frame).encode())
        caption = numbers.fill(caption, self.numbers)
        display(_Shown(markup.to_html(frame, caption), markup.to_markdown(frame, caption)))

    def figure(self, figure, name: str, caption: str, alt: str) -> None:
        """Save a figure as SVG and PNG and show it; caption and alt text may name numbers by their keys."""
        style.save(figure, self.figures_dir, name)
        self.show(name, caption, alt)

    def show(self, name: str, caption: str, alt: str) -> None:
        """Show a figure that the run has saved, with its SVG embedded."""
        from IPython.display import display

        known = self.numbers
        code = base64.b64encode((self.figures_dir / f"{name}.svg").read_bytes()).decode()
        alt, caption = (numbers.fill(text, known) for text in (alt, caption))
        size = "width:100%;max-width:640px"
        image = f'<img src="data:image/svg+xml;base64,{code}" alt="{html.escape(alt)}" style="{size}">'
        page = f'<figure id="figure-{name}">{image}<figcaption>{html.escape(caption)}</figcaption></figure>'
        display(_Shown(page, f"![{alt}]({name}.png)\n\n*{html.escape(caption, quote=False)}*"))


class _Shown:
    """HTML for a page and, for what is published, Markdown, in which figures are files beside it."""

    def __init__(self, page: str, markdown: str):
        self._page, self._markdown = page, markdown

    def _repr_html_(self) -> str:
        return self._page

    def _repr_markdown_(self) -> str:
        return self._markdown

    def __repr__(self) -> str:
        return self._markdown
