"""Tables about the measurements themselves: on what, whether all compute the same, whether twins agree, what failed."""

import math
from pathlib import Path

from sam3lab.bench import environment as environments
from sam3lab.bench import results, statistics
from sam3lab.bench.parity import verdicts as parity_verdicts
from sam3lab.bench.statistics import Estimate
from sam3lab.study import tables
from sam3lab.study.style import look, ordered

FACTS = {
    "cpu": "Processor",
    "cpu_isa": "Vector and matrix instructions",
    "threads": "Threads used",
    "ram_gb": "Memory, GB",
    "gpu": "GPU",
    "gpu_driver": "GPU driver",
    "os": "Operating system",
    "kernel": "Kernel",
    "python": "Python",
    "virtual": "Virtual machine",
    "collected": "When",
    "git_commit": "Commit of this project",
    "code": "Digest of the measuring code",
}

TOLD = ["backend", "checkpoint", "precision", "resolution", "batch", "prompts"]  # of a case, in the table of agreement


def environment(facts: dict):
    """What the run was made on, as a table of two columns; packages that are not installed are left out."""
    import pandas as pd

    facts = facts | {"git_commit": environments.commit(facts)}
    rows = [(title, _plain(facts[name])) for name, title in FACTS.items() if facts.get(name) is not None]
    packages = {name.removeprefix("version_"): value for name, value in facts.items() if name.startswith("version_")}
    rows += [(f"{name}, version", value) for name, value in packages.items() if value]
    return pd.DataFrame(rows, columns=["What", "Value"])


LIBRARIES = {"torch": "PyTorch", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "numpy": "NumPy"}


def products(rates: dict[str, dict], precisions: set[str]) -> str:
    """Whose matrix products are the ceiling, in words. rates: rows of bench.ceilings by precision."""
    libraries = {rates[name].get("library", "torch") for name in precisions}
    whose = " and ".join(sorted(LIBRARIES.get(name, name) for name in libraries))
    return f"{whose}'s matrix products"


def goes(found: dict[str, list[str]]):
    """stored.goes as a table: a row a fact, a column a go, oldest first."""
    import pandas as pd

    titles = FACTS | {"folder": "Folder", "notebooks": "Notebooks shown from it"}
    rows = [(titles.get(name, name.replace("_", ", ", 1)), *values) for name, values in found.items()]
    count = len(rows[0]) - 1 if rows else 1
    return pd.DataFrame(rows, columns=["What", *(f"Go {number}" for number in range(1, count + 1))])


def tell(study, alike, samples) -> None:
    """Say and show on a study's page how far its times are to be trusted. alike: a frame of `alike`; samples: results.load's."""
    study.say(
        "- Stages that have a twin: {report.twins}; of these, differing by more than the intervals allow: {report.unlike}.",
        "- Measuring adds {harness.overhead} to a call of known length.",
    )
    if share := apart(samples):
        study.note({"report.apart": (share, "%")})
        study.say(
            "- Of the timed samples {report.apart} do not count: the host's core was slower then than at its best."
        )
    count, of = slowed(samples)
    if count:
        study.note({"report.slowed": (count, "stages"), "report.looked": (of, "")})
        study.say(
            "- In {report.slowed} of {report.looked}, each in a process, it was slower beside most of the samples that count, as there were too few others; such a process counts only among the three of its case and stage that were slowed the least."
        )
    title = (
        "The same case twice: ratio of the medians, with intervals for all stages together and from the noise of all."
    )
    study.table(twins(alike), "twins", title)


def apart(samples) -> float:
    """Percent of the timed samples in steady state that were kept apart, see bench.host_speed."""
    timed = samples[(samples["metric"] == "wall") & samples["phase"].isin(["steady", "disturbed"])]
    return 100.0 * float((timed["phase"] == "disturbed").mean()) if len(timed) else 0.0


def slowed(samples) -> tuple[int, int]:
    """How many stages, each in a process, were slowed for most of the samples that count, and how many were looked at."""
    shares = samples.loc[samples["metric"] == "slowed", "value"]
    return int((shares > results.SLOWED).sum()), len(shares)


def _plain(value) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def machine(facts: dict) -> str:
    """The machine in a few words."""
    return facts.get("gpu") or f"{facts['cpu']}, {facts['threads']} threads"


def ceilings(rows: list[dict]):
    """The rows of bench.ceilings.ceilings as a table."""
    import pandas as pd

    table = [
        (
            row["ceiling"],
            row["precision"],
            Estimate(row["value"], row["low"], row["high"]),
            row["unit"],
            f"{row['size']:,}",
            LIBRARIES.get(row.get("library", "torch"), row.get("library")),
        )
        for row in rows
    ]
    return pd.DataFrame(table, columns=["Ceiling", "Type", "Rate", "Unit", "Bytes copied, or side n", "Library"])


def rate(row: dict | None) -> Estimate:
    """The rate of one of those rows; not a number where there is none."""
    return Estimate(*(row[end] if row else math.nan for end in tables.ENDS))


def parity(rows, samples):
    """One row for the cases that are alike in TOLD and were compared with native PyTorch, whichever of their stages were
    timed: their worst agreement in each respect, of all goes, and the verdict. The checkpoint is told where there are
    several.

    rows: results.parity_rows'. samples: results.load's, for what the cases are.
    """
    import pandas as pd

    cases = (
        samples[(samples["replica"] == 0) & ~samples["mode"].isin(["accuracy", "cold"])]
        .drop_duplicates("case")
        .sort_values(["prompts", "resolution", "batch"])
    )
    rank = ordered(cases["backend"])
    cases = cases.sort_values("backend", key=lambda names: names.map(rank.index), kind="stable")
    cases = cases.set_index("case", drop=False)
    firsts = cases.groupby(TOLD)["case"].transform("first")  # by case: the one that stands for all alike
    rows = rows[rows["case"] != rows["reference"]]
    rows = rows.assign(case=rows["case"].map(firsts))
    verdicts = parity_verdicts(rows)
    compared = dict(iter(rows.groupby("case")))
    table = []
    for case, about in cases.iterrows():
        if case not in compared:
            continue
        group = compared[case]
        outputs = group.dropna(subset="relative_error")
        found = group.dropna(subset="expected")
        worst = outputs.loc[outputs["relative_error"].idxmax()] if len(outputs) else None
        fewest = found.loc[[(found["matched"] - found["expected"]).idxmin()]] if len(found) else found
        table.append(
            {
                "Runtime": look(about["backend"]).label,
                "Checkpoint": about["checkpoint"],
                "Precision": about["precision"],
                "Side, pixels": int(about["resolution"]),
                "Images": int(about["batch"]),
                "Prompt": " | ".join(about["prompts"]),
                "Relative error": math.nan if worst is None else float(worst["relative_error"]),
                "in": "–" if worst is None else worst["output"],
                "Least cosine": f"{outputs['cosine'].min():.6f}",
                "Detections matched": " ".join(
                    f"{row.matched:.0f} of {row.expected:.0f}" for row in fewest.itertuples()
                ),
                "Verdict": "FAILED" if verdicts[case] == "failed" else verdicts[case],
            }
        )
    columns = ["Runtime", "Checkpoint", "Precision", "Side, pixels", "Images", "Prompt", "Relative error", "in"]
    found = pd.DataFrame(table, columns=[*columns, "Least cosine", "Detections matched", "Verdict"])
    return found if found["Checkpoint"].nunique() > 1 else found.drop(columns="Checkpoint")


def alike(run_dir: Path):
    """statistics.aa_check of the samples of one run, and a column more, folder: the run's."""
    return statistics.aa_check(results.load(run_dir)).assign(folder=Path(run_dir).name)


def twins(check):
    """Frames of `alike`, one below the other, as a table; the folder is told where there are several."""
    import pandas as pd

    rows = [
        (row.folder, row.label, row.stage, Estimate(row.ratio, row.low, row.high), row.verdict, bool(row.agrees))
        for row in check.itertuples()
    ]
    columns = ["Folder", "Case", "Stage", "One over the other", "Verdict", "No difference shown"]
    table = pd.DataFrame(rows, columns=columns)
    return table if table["Folder"].nunique() > 1 else table.drop(columns="Folder")


def failures(frame, fewer=()):
    """What failed, hung, was skipped or computed something else, and why; each reason once a case. fewer: `short`'s."""
    import pandas as pd

    frame = frame[
        (frame["mode"] != "accuracy") | (frame["status"] != "skipped")
    ]  # its twin that is timed was skipped too
    kept = frame.drop_duplicates(["case", "status"])
    later = [f"in round {number + 1}: " if number else "" for number in kept["round"].astype(int)]
    rows = [*zip(kept["label"], kept["status"], pd.Series(later, kept.index) + kept["reason"], strict=True), *fewer]
    rows = list(dict.fromkeys(rows))  # labels leave out what the prompts are
    return pd.DataFrame(rows, columns=["Case", "What happened", "Why"])


def short(known: dict[str, dict], samples) -> list[tuple[str, str, str]]:
    """(label, what happened, why) of the cases with fewer rounds than were asked for.

    known: the numbers of the run, among which Study.measure records them. samples: results.load's, for their labels.
    """
    labels = samples.drop_duplicates("case").set_index("case")["label"]
    found = {(key.split(".")[2], each["text"]): None for key, each in known.items() if key.startswith("short.")}
    return [(labels[case], "fewer rounds", why) for case, why in found]
