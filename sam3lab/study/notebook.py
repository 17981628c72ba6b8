"""`Study`: what a notebook calls. It checks the notebook's parameters, measures or loads, and writes what is shown."""

from dataclasses import replace

from sam3lab import paths
from sam3lab.bench import statistics
from sam3lab.bench.files import write_json
from sam3lab.errors import UserError
from sam3lab.study import numbers, presets, stored, tables
from sam3lab.study.page import Page
from sam3lab.study.parameters import OURS, PARAMETERS, check_injected, converted


class Study(Page):
    """One notebook's side of the study.

    notebook: its name, such as "02_resolution". scope: its globals(); the parameters are read from there, and written
    back in their proper type (papermill's command line passes a list as text), with the device's defaults in place of
    empty ones. UserError on a misspelt parameter or a bad value, before anything is measured; and in a notebook that shows
    what others recorded, where its run has none of that.
    """

    def __init__(self, notebook: str, scope: dict):
        check_injected(notebook, scope.get("In", ()))
        given = {name: converted(name, scope[name]) for name in PARAMETERS if name in scope}
        run_dir = paths.RUNS / (given["run"] or notebook)
        figures = stored.nearest(given["figures"]) if given["figures"] else run_dir / "figures"
        super().__init__(notebook, run_dir, figures, given)
        self._said: set[str] = set()
        self.measuring = given["measure"]
        self.source = run_dir
        measures = notebook in presets.OWN["cpu"]
        if given["results"] and not self.measuring:
            whole = stored.directory(given["results"])
            self.source = stored.shown(whole, notebook) if measures else whole
        if not measures:
            self._check_others()
        known = {} if self.measuring else self.facts.get(f"parameters.{notebook}", {})
        if not (measures or self.measuring or known):
            known = stored.latest(self.facts)
        self.parameters = presets.resolved(notebook, given, known)
        if "backends" in self.parameters:  # what the others are compared with is always measured, and first
            others = [name for name in self.parameters["backends"] if name != tables.NATIVE]
            self.parameters["backends"] = [tables.NATIVE, *others]
        scope.update(self.parameters)
        if self.measuring:
            own = {name: value for name, value in self.parameters.items() if name not in OURS}
            self._keep(f"parameters.{notebook}", own)

    def _check_others(self) -> None:
        """UserError where the run has no numbers of the notebooks that measure, or not those of the results to be shown."""
        recorded = {record["notebook"] for record in numbers.load(self.run_dir / "numbers.json").values()}
        needed, problem = [], ""
        if self.source.resolve() != self.run_dir.resolve():
            needed = [name for name in presets.OWN["cpu"] if f"parameters.{name}" in self.facts]
            if (self.run_dir / "facts.json").exists():  # as only a run that measured has
                problem = f"the numbers in {self.run_dir} were measured there, and are not of {self.source}"
        missing = [name for name in needed if name not in recorded]
        if missing or recorded.isdisjoint(presets.OWN["cpu"]):
            others = ", ".join(missing) or "the notebooks before it"
            problem = f"{self.notebook} shows the numbers of {others}, and {self.run_dir} has none"
        if problem:
            raise UserError(
                f"{problem}: measure by `sam3lab study` and name its run, or render stored results by "
                "`sam3lab figures --results DIR --out DIR`"
            )

    # What is known of the machine and the checkpoint.

    @property
    def facts(self) -> dict:
        """What was found out once and is kept beside the results: parameters, ceilings, the checkpoint's resolution."""
        return stored.facts(self.source)

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

    def optional(self, key: str, find):
        """As `fact`, but None where nothing is measured and the stored results do not have it."""
        return self.fact(key, find) if self.measuring or key in self.facts else None

    def finding(self, key: str, find):
        """As `fact`, for what later measurements may change: it is found anew whenever the notebook measures."""
        if self.measuring:
            self._keep(key, find())
        return self.fact(key, find)

    @property
    def native(self) -> int:
        """The checkpoint's own resolution in pixels."""
        return self._native(self.parameters["checkpoint"])

    def _native(self, name: str) -> int:
        from sam3lab.model import checkpoint

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

    def rows(self, reference: bool = True) -> list[tuple[str, str]]:
        """(backend, precision) of the rows of the notebook's tables (see presets.rows); prose may then name them."""
        self.named = presets.rows(self.parameters["backends"], self.parameters["precision"], reference)
        return self.named

    def case(self, backend: str = tables.NATIVE, precision: str = "", **changes):
        """The Case that the parameters describe, of that runtime, with `changes` to its fields.

        Unchanged, in a precision of the study's rows, it is a base case, which several notebooks share; those alone are
        measured end to end. With other prompts the stages are measured too; at another resolution, batch, checkpoint or
        precision the whole pipeline is what is asked for, and no stage of it.
        """
        from sam3lab.bench.case import Case

        given = self.parameters
        headline = given.get("precision") or presets.COMMON[given["device"]]["precision"]
        precision = precision or presets.precision(backend, headline)
        base = {"checkpoint": given["checkpoint"], "device": given["device"], "prompts": (given["prompt"],), "batch": 1}
        base |= {"resolution": given.get("resolution") or self.native}
        fields = base | {"backend": backend, "precision": precision, "images": (given["image"],)} | changes
        other = {name for name in base if fields[name] != base[name]}
        other |= set() if presets.is_base(backend, precision, headline) else {"precision"}
        mode = "model" if "prompts" in other else "pipeline" if other else "speed"
        return Case(**{"mode": mode} | fields)

    def apart(self, cases: list, mode: str) -> list:
        """The cases, a base case as one of its own in that mode: measured beside the others, and not, in a study of several
        notebooks, by one of those before it, when the machine was perhaps a little faster. As results have them that are
        shown and were made otherwise.
        """
        own = [replace(case, mode=mode) if case.mode == "speed" else case for case in cases]
        if self.measuring:
            return own
        there = set(self.samples()["case"])
        return own if any(case.id in there for case in set(own) - set(cases)) else cases

    def lists(self, counts: list[int]) -> dict[int, tuple[str, ...]]:
        """{count: that many prompts of one word}, its own first; UserError where not so many words are stored."""
        from sam3lab import prompts

        own = self.parameters["prompt"]
        words = [own, *(each.text for each in prompts.by_kind("word") if each.text != own)]
        if counts and max(counts) > len(words):
            raise UserError(f"counts = {counts} cannot be used: data/prompts.csv has words for {len(words)} prompts")
        return {count: tuple(words[:count]) for count in sorted(counts)}

    def measure(self, cases, **how):
        """The samples of `cases` as a tidy frame (see sam3lab.bench.results.load), measured now or read from storage.

        What the run already holds is not measured again. how: other arguments of runner.measure than the parameters.
        UserError where stored results hold none of the cases. A case with fewer rounds than the parameters ask for is told,
        and recorded as `short.<notebook>.<case>`.
        """
        if self.measuring:
            self._run(cases, how)
        kept = tables.of(self.samples(), cases)
        if kept.empty:
            raise UserError(
                f"{self.source} holds no samples of {self.notebook}'s cases: see its failures and parameters"
            )
        asked, there = how.get("rounds", self.parameters["rounds"]), kept.groupby("case")["round"].nunique()
        for case in dict.fromkeys(cases):
            if not case.once and (count := int(there.get(case.id, asked))) < asked:
                key = f"short.{self.notebook}.{case.id}"
                self.record(key, f"only {count} of {asked} rounds {'was' if count == 1 else 'were'} measured")
                self.say(f"*Of `{case.label}` {{{key}}}.*")
        if "most_rounds" in self.parameters and (most := int(there.max())) > asked:
            key = f"more.{self.notebook}"
            self.note({key: (most, "rounds"), f"{key}.within": (100 * statistics.TOLERANCE, "%")})
            self.say(f"*Cases whose median was not sure to within {{{key}.within}} have more rounds, up to {{{key}}}.*")
        return kept

    def _run(self, cases, how: dict) -> None:
        from sam3lab.bench import runner

        names = ("rounds", "most_rounds", "min_samples", "min_seconds", "seed")
        given = {name: self.parameters[name] for name in names if name in self.parameters}
        runner.measure(cases, self.run_dir, **given | how)

    def samples(self):
        """All samples of the run or of the stored results, A/A twins among them."""
        from sam3lab.bench import results

        return results.load(self.source)

    @property
    def scored(self) -> str:
        """The checkpoint whose accuracy is to be known: the notebook's own if it was trained, else the small one that
        comes with the project; empty where the notebook does not ask for it, or there is no such checkpoint.
        """
        from sam3lab.model import checkpoint

        trained = [name for name in (self.parameters["checkpoint"], presets.STAND_IN) if not checkpoint.is_random(name)]
        return trained[0] if self.parameters["accuracy"] and trained else ""

    def twins(self, cases, split: str = "test"):
        """The accuracy twins of `cases`, on as many scenes of a stored split as the notebook's parameter says.

        They are of the checkpoint that is `scored`, at its own resolution where that is not the notebook's; runtimes that
        know the published architecture alone (presets.ONLY) have none then.
        """
        from sam3lab.bench.case import accuracy_case

        other = {}
        if self.scored not in ("", self.parameters["checkpoint"]):
            other = {"checkpoint": self.scored, "resolution": self._native(self.scored)}
            cases = [case for case in cases if case.backend not in presets.ONLY]
        return [accuracy_case(replace(case, **other), split, self.parameters["scenes"] or None) for case in cases]

    def accuracy(self, cases, split: str = "test", **how):
        """results.accuracy's rows of the accuracy twins of `cases` on a split, measured now or read from storage.

        No row where nothing is `scored`, or where stored results have none; either is told. how: as for `measure`.
        """
        from sam3lab.bench import results

        twins = self.twins(cases, split)
        if self.measuring and self.scored:
            self._run(twins, how)
        rows = results.accuracy(self.source)
        rows = rows[rows["case"].isin([twin.id for twin in twins])].reset_index(drop=True)
        if not self.scored:
            self.say("*Accuracy is not scored here: it was not asked for, or no trained checkpoint is there.*")
        elif rows.empty:
            self.say("*No accuracy is known in this run.*")
        elif self.scored != self.parameters["checkpoint"]:
            self._say_once(
                f"*Accuracy is that of `{self.scored}` on this device: the weights of the other are random.*"
            )
        return rows if self.scored else rows.iloc[:0]

    def _say_once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self.say(line)

    def failures(self, cases):
        """results.failures' rows of `cases` and of their accuracy twins: what is missing, and why."""
        from sam3lab.bench import results

        rows = results.failures(self.source)
        return rows[rows["case"].isin([case.id for case in [*cases, *self.twins(cases)]])]

    def absent(self, cases) -> dict[tuple[str, str], str]:
        """{(backend, precision): "not run here: …" or "failed: …"} of those of `cases` that gave no samples.

        Recorded for prose too, as `absent.<notebook>.<backend>.<precision>`, where none of the cases gave any.
        """
        from sam3lab.bench import results

        samples, rows = tables.of(self.samples(), cases), results.failures(self.source)
        silent = {case.id for case in cases} - set(samples["case"])
        rows = rows[rows["case"].isin(silent) & (rows["status"] != "parity")]
        how = {"skipped": "not run here"}
        why = {
            (row.backend, row.precision): f"{how.get(row.status, 'failed')}: {row.reason}" for row in rows.itertuples()
        }
        measured = set(samples[tables.BY].itertuples(index=False, name=None))
        for group in set(why) - measured:
            self.record(f"absent.{self.notebook}.{'.'.join(group)}", why[group])
        return why
