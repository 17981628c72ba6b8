"""What serving costs and gains: the experiments of its notebook, measured or read, of the runtimes that are right."""

from dataclasses import dataclass

from sam3lab.errors import UserError
from sam3lab.study import serving_numbers as numbers
from sam3lab.study import serving_run, serving_store, tables
from sam3lab.study.style import look
from sam3lab.study.tables import BY, NATIVE


@dataclass
class Served:
    """What was measured of the served runtimes whose outputs are right.

    records: serving_store.load's, of those. idle: {(backend, precision): median ms of a request to the idle service}.
    absolute: whether times are shown as they are, or as multiples of idle requests, as on a processor that others share.
    failed: {(backend, experiment): why}.
    """

    study: object
    samples: object
    records: object
    idle: dict[tuple[str, str], float]
    absolute: bool
    failed: dict[tuple[str, str], str]


def measured(study) -> Served:
    """The experiments on every runtime of the study but native PyTorch, measured now or read from storage.

    Their bare pipelines are measured too, which shows that what is served computes what it should. Prose may then name
    the rows whose outputs are right. UserError where stored results hold none of the experiments.
    """
    wanted = [row for row in study.rows(reference=False) if row[0] != NATIVE]
    cases = [study.case(*row) for row in wanted]
    samples = study.measure(cases, rounds=1)
    study.absent(cases)
    there = set(samples[BY].itertuples(index=False, name=None))
    made = [plan(study.parameters, study.native, study.scored, row) for row in wanted if row in there]
    if study.measuring:
        for each in made:
            serving_run.run(each, study.run_dir)
    rows = serving_store.load(study.source, [key for each in made for key in each.keys])
    if rows.empty:
        raise UserError(f"{study.source} holds no records of {study.notebook}: run the study that stored it again")
    right = [group for group, state in tables.rows(samples, BY) if state in ("passed", "reference")]
    study.named = [row for row in wanted if row in right]
    failed = rows[rows["error"] != ""]
    why = {(each.backend, each.experiment): each.error for each in failed.itertuples()}
    kept = rows[[group in study.named for group in zip(rows["backend"], rows["precision"], strict=True)]]
    kept = kept[kept["error"] == ""]
    idle = tables.column(numbers.medians(kept, "preloaded"), BY)
    known = {group: each.value for group, each in idle.items()}
    return Served(study, samples, kept, known, study.parameters["device"] != "cpu", why)


def plan(given: dict, side: int, scored: str, row: tuple[str, str]) -> serving_run.Plan:
    """What is to be measured of a runtime, (backend, precision), with the notebook's parameters (see serving_run.Plan)."""
    same = {name: given[name] for name in ("checkpoint", "device", "seconds", "requests", "rounds", "seed")}
    fallback = "" if given["fallback"] == "none" else given["fallback"]
    loads = tuple(sorted(given["loads"]))
    backend, precision = row
    return serving_run.Plan(
        **same, side=side, backend=backend, precision=precision, fallback=fallback, scored=scored, loads=loads
    )


def failures(served: Served):
    """What could not be measured, and why, as a table."""
    import pandas as pd

    rows = [(look(backend).label, experiment, why) for (backend, experiment), why in served.failed.items()]
    return pd.DataFrame(rows, columns=["Runtime", "Experiment", "Why"])
