"""`Study`: what a notebook calls. It checks the notebook's parameters, measures or loads, and writes what is shown."""

import base64
import html
import json
from pathlib import Path

from sam3lab import paths
from sam3lab.bench.files import write_atomically, write_json
from sam3lab.errors import UserError
from sam3lab.study import claims, numbers, style, tables
from sam3lab.study.parameters import OURS, PARAMETERS, check_injected, converted


class Study:
    """One notebook's side of the study.

    notebook: its name, such as "02_resolution". scope: its globals(); the parameters are read from there, and written
    back in their proper type (papermill's command line passes a list as text). UserError on a misspelt parameter or a
    bad value, before anything is measured.
    """

    def __init__(self, notebook: str, scope: dict):
        check_injected(notebook, scope.get("In", ()))
        self.notebook = notebook
        self.parameters = {name: converted(name, scope[name]) for name in PARAMETERS if name in scope}
        if "backends" in self.parameters:  # what the others are compared with is always measured, and first
            others = [name for name in self.parameters["backends"] if name != tables.NATIVE]
            self.parameters["backends"] = [tables.NATIVE, *others]
        scope.update(self.parameters)
        self.run_dir = paths.RUNS / (self.parameters["run"] or notebook)
        self.measuring = self.parameters["measure"]
        stored = self.parameters["results"]
        self.source = Path(stored) if stored and not self.measuring else self.run_dir
        self.figures_dir = Path(self.parameters["figures"] or self.run_dir / "figures")
        self._own: dict[str, dict] = {}
        if self.measuring:
            own = {name: value for name, value in self.parameters.items() if name not in OURS}
            self._keep(f"parameters.{notebook}", own)

    # What is known of the machine and the checkpoint.

    @property
    def facts(self) -> dict:
        """What was found out once and is kept beside the results: parameters, ceilings, the checkpoint's resolution."""
        path = self.source / "facts.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def _keep(self, key: str, value) -> None:
        write_json(self.run_dir / "facts.json", dict(sorted((self.facts | {key: value}).items())))

    def fact(self, key: str, find):
        """The JSON value under `key` in facts.json, found by calling `find` the first time that a run asks for it.

        UserError where nothing is measured and the stored results do not have it.
        """
        if key not in self.facts:
            if not self.measuring:
                raise UserError(f"{self.source / 'facts.json'} has no {key!r}: run the study that stored it again")
            self._keep(key, find())
        return self.facts[key]

    def finding(self, key: str, find):
        """As `fact`, for what later measurements may change: it is found anew whenever the notebook measures."""
        if self.measuring:
            self._keep(key, find())
        return self.fact(key, find)

    @property
    def native(self) -> int:
        """The checkpoint's own resolution in pixels."""
        from sam3lab.model import checkpoint

        name = self.parameters["checkpoint"]
        return self.fact(f"native.{name}", lambda: checkpoint.image_size(checkpoint.resolve(name)))

    @property
    def resolutions(self) -> list[int]:
        """Sides in pixels: the parameter's, or a half, one and one and a half of the checkpoint's own; its own first.

        Its own comes first because the other notebooks measure it too.
        """
        own = self.native
        chosen = self.parameters["resolutions"] or [round(own * scale / 14) * 14 for scale in (0.5, 1, 1.5)]
        return sorted(chosen, key=lambda side: (side != own, side))

    # Measuring.

    def case(self, **changes):
        """The Case that the parameters describe, with `changes` to its fields.

        Unchanged, but for its backend, it is the study's base case, which several notebooks share; it alone is measured
        end to end. At another resolution or precision the whole pipeline is what is asked for, and no stage of it.
        """
        from sam3lab.bench.case import Case

        given = self.parameters
        base = {"precision": Case.precision}
        base |= {name: given[name] for name in ("checkpoint", "device", "precision") if name in given}
        base |= {"resolution": given.get("resolution") or self.native, "prompts": (given["prompt"],)}
        fields = base | {"images": (given["image"],)} | changes
        other = {name for name in ("resolution", "precision", "prompts") if fields.get(name) != base.get(name)}
        mode = "model" if "prompts" in other else "pipeline" if other else "speed"
        return Case(**{"mode": mode} | fields)

    def measure(self, cases, **how):
        """The samples of `cases` as a tidy frame (see sam3lab.bench.results.load), measured now or read from storage.

        What the run already holds is not measured again. how: other arguments of runner.measure than the parameters.
        UserError where stored results hold none of the cases.
        """
        if self.measuring:
            from sam3lab.bench import runner

            given = {name: self.parameters[name] for name in ("rounds", "min_samples", "min_seconds", "seed")}
            runner.measure(cases, self.run_dir, **given | how)
        samples = self.samples()
        kept = samples[samples["case"].isin([case.id for case in cases])]
        if kept.empty:
            raise UserError(
                f"{self.source} holds no samples of {self.notebook}'s cases: see its failures and parameters"
            )
        return kept

    def samples(self):
        """All samples of the run or of the stored results, A/A twins among them."""
        from sam3lab.bench import results

        return results.load(self.source)

    @property
    def scored(self) -> bool:
        """Whether accuracy is to be known: the notebook asks for it, and the checkpoint was trained."""
        from sam3lab.model import checkpoint

        return self.parameters["accuracy"] and not checkpoint.is_random(self.parameters["checkpoint"])

    def twins(self, cases, split: str = "test"):
        """The accuracy twins of `cases`, on as many scenes of a stored split as the notebook's parameter says."""
        from sam3lab.bench.case import accuracy_case

        return [accuracy_case(case, split, self.parameters["scenes"] or None) for case in cases]

    def accuracy(self, cases, split: str = "test", **how):
        """results.accuracy's rows of the accuracy twins of `cases` on a split, measured now or read from storage.

        No row where `scored` is false, or where stored results have none; either is told. how: as for `measure`.
        """
        from sam3lab.bench import results

        twins = self.twins(cases, split)
        if self.measuring and self.scored:
            from sam3lab.bench import runner

            given = {name: self.parameters[name] for name in ("rounds", "min_samples", "min_seconds", "seed")}
            runner.measure(twins, self.run_dir, **given | how)
        rows = results.accuracy(self.source)
        rows = rows[rows["case"].isin([twin.id for twin in twins])].reset_index(drop=True)
        if not self.scored:
            self.say("*Accuracy is not scored here: it was not asked for, or the checkpoint's weights are random.*")
        elif rows.empty:
            self.say("*No accuracy is known in this run.*")
        return rows if self.scored else rows.iloc[:0]

    def failures(self, cases):
        """results.failures' rows of `cases` and of their accuracy twins: what is missing, and why."""
        from sam3lab.bench import results

        rows = results.failures(self.source)
        return rows[rows["case"].isin([case.id for case in [*cases, *self.twins(cases)]])]

    # Showing.

    def record(self, key: str, what, unit: str = "", by=("backend",)) -> None:
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

    @property
    def numbers(self) -> dict[str, dict]:
        """Every number that prose may name: the run's, the article's (`claim.L1`), the runtimes' names, the parameters."""
        known = numbers.load(self.run_dir / "numbers.json") | claims.records()
        known |= {f"name.{name}": numbers.number(look.label) for name, look in style.RUNTIMES.items()}
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
        from IPython.display import HTML, display

        write_atomically(self.run_dir / "tables" / f"{name}.csv", tables.to_csv(frame).encode())
        display(HTML(tables.to_html(frame, numbers.fill(caption, self.numbers))))

    def figure(self, figure, name: str, caption: str, alt: str) -> None:
        """Save a figure as SVG and PNG and show it; caption and alt text may name numbers by their keys."""
        style.save(figure, self.figures_dir, name)
        self.show(name, caption, alt)

    def show(self, name: str, caption: str, alt: str) -> None:
        """Show a figure that the run has saved, with its SVG embedded."""
        from IPython.display import HTML, display

        known = self.numbers
        code = base64.b64encode((self.figures_dir / f"{name}.svg").read_bytes()).decode()
        alt, caption = (html.escape(numbers.fill(text, known)) for text in (alt, caption))
        image = f'<img src="data:image/svg+xml;base64,{code}" alt="{alt}" style="width:100%;max-width:640px">'
        display(HTML(f'<figure id="figure-{name}">{image}<figcaption>{caption}</figcaption></figure>'))
