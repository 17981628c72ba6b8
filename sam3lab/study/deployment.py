"""What it takes to deploy each runtime, in numbers instead of stars: rows of bench.deployment, compared in each respect."""

from sam3lab.study.claims import CONTRADICTED, REPRODUCED, UNTESTED, load
from sam3lab.study.numbers import number
from sam3lab.study.style import look, ordered

# {column of bench.deployment.table: (heading, unit)}; of each, more is harder.
RESPECTS = {
    "packages": ("Packages to run", ""),
    "installed_mb": ("Installed to run, MB", "MB"),
    "steps": ("Steps", ""),
    "export_s": ("Export, s", "s"),
    "build_s": ("Build, s", "s"),
    "lines": ("Lines of code", ""),
}

LEAST = 4
SAME = 1.0  # s: what is made in less, or takes so little longer, is the noise of a first call


def measured(study, samples) -> list[dict]:
    """The rows of bench.deployment.table, with the seconds of `samples` (cold cases, and the same started warm).

    What is installed is looked up on the machine that measures and kept with the results; none where they have none.
    """
    from sam3lab.bench import deployment

    device = study.parameters["device"]
    rows = study.optional("deployment", lambda: deployment.table(device).to_dict("records")) or []
    made = {row["backend"]: deployment.made(samples, row["backend"]) for row in rows}
    seconds = {name: [None if each is None else round(each, 3) for each in found] for name, found in made.items()}
    scripts = deployment.scripts()
    return [
        row
        | (deployment.counted(scripts[row["backend"]]) if row["backend"] in scripts else {})
        | dict(zip(("export_s", "build_s"), seconds[row["backend"]], strict=True))
        for row in rows
    ]


def table(rows: list[dict]):
    """The rows as a table for people."""
    import pandas as pd

    known = {row["backend"]: row for row in rows}
    head = ["Runtime", *(heading for heading, _ in RESPECTS.values())]
    lines = [[look(name).label, *(known[name].get(column) for column in RESPECTS)] for name in ordered(known)]
    return pd.DataFrame(lines, columns=head, dtype=object)


def numbers(rows: list[dict]) -> dict[str, tuple[float, str]]:
    """What `Study.record` takes: {"deployment.<column>.<backend>": (value, unit)}, without what is not known."""
    return {
        f"deployment.{column}.{row['backend']}": (float(row[column]) if unit else int(row[column]), unit)
        for row in rows
        for column, (_, unit) in RESPECTS.items()
        if row.get(column) is not None and row[column] == row[column]  # NaN where it was not measured
    }


def of(backend: str, known: dict[str, dict]) -> dict[str, float]:
    """{column: value} that was recorded of a runtime."""
    keys = {column: f"deployment.{column}.{backend}" for column in RESPECTS}
    return {column: known[key]["value"] for column, key in keys.items() if key in known}


def scripted() -> dict[str, dict]:
    """The records of what needs no machine to be counted, of every runtime: the steps and the lines of its script."""
    from sam3lab.bench import deployment

    rows = [{"backend": name} | deployment.counted(script) for name, script in deployment.scripts().items()]
    return {key: number(*what) for key, what in numbers(rows).items()}


def judged(backend: str, known: dict[str, dict]) -> tuple[str, str, str]:
    """(what was counted, verdict, why) of the article's stars for a runtime.

    Stars order the runtimes, and the order can be tested. It is reproduced where, against every other of the article's
    runtimes, more respects agree with the order of the stars than contradict it; contradicted where, against one of them,
    fewer do. Of two runtimes at least LEAST respects must be known, for those that a script alone tells are not the ones
    that a runtime might be easier in; and seconds that differ by less than SAME are equal.
    """
    stars = {claim.backend: claim.value for claim in load() if claim.metric == "difficulty"}
    own = of(backend, known)
    here = ", ".join(_said(column, known[f"deployment.{column}.{backend}"]) for column in own)
    every = {name: of(name, known) for name in stars if name != backend}
    others = {name: other for name, other in every.items() if len(own.keys() & other.keys()) >= LEAST}
    if not others:
        why = "too little is known here of it, or of the others, for steps and lines do not decide alone"
        return here, UNTESTED, f"{why}: `sam3lab study --notebook 07_deployment` counts the rest of what is installed"
    found, said = [], []
    for name, other in others.items():
        less = -1 if stars[backend] < stars[name] else 1
        signs = [less * _more(column, own[column], other[column]) for column in own.keys() & other.keys()]
        agree, against = sum(sign > 0 for sign in signs), sum(sign < 0 for sign in signs)
        found.append(agree - against)
        order = "harder" if less > 0 else "easier"
        said.append(f"{order} than {look(name).label} in {agree} of {len(signs)} respects, the other way in {against}")
    verdict = CONTRADICTED if min(found) < 0 else REPRODUCED if min(found) > 0 else UNTESTED
    said += [f"too little is known here of {look(name).label}" for name in every if name not in others]
    return here, verdict, "; ".join(said)


def _more(column: str, one: float, other: float) -> float:
    """What one has over the other, 0 where that says nothing."""
    return 0.0 if RESPECTS[column][1] == "s" and abs(one - other) < SAME else one - other


def _said(column: str, record: dict) -> str:
    small = RESPECTS[column][1] == "s" and record["value"] < SAME
    return f"{f'under {SAME:g} s' if small else record['text']} {WORDS[column]}"


WORDS = {
    "packages": "packages to run",
    "installed_mb": "installed to run",
    "steps": "steps",
    "export_s": "of export",
    "build_s": "of building",
    "lines": "lines",
}
