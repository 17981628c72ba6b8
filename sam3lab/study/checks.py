"""Tables about the measurements themselves: on what, whether all compute the same, whether twins agree, what failed."""

import math
from pathlib import Path

from sam3lab.bench.parity import LIMITS
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


def environment(facts: dict):
    """What the run was made on, as a table of two columns; packages that are not installed are left out."""
    import pandas as pd

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


def state(samples):
    """Clocks, power and temperature of the GPU while the pipeline ran, as a table; empty where they were not recorded."""
    import pandas as pd

    headings = {"Clock, MHz": "clock_sm", "Power, W": "power", "Temperature, °C": "temperature"}
    cells = {
        heading: tables.column(tables.estimates(samples, by=tables.BY, metric=metric), tables.BY)
        for heading, metric in headings.items()
    }
    return tables.build(samples, cells, tables.BY, tables.HEADINGS) if any(cells.values()) else pd.DataFrame()


def goes(unlike: dict[str, list[str]]):
    """stored.differences as a table: a row a fact, a column a go, oldest first."""
    import pandas as pd

    rows = [(FACTS.get(name, name.replace("_", ", ", 1)), *values) for name, values in unlike.items()]
    count = len(rows[0]) - 1 if rows else 1
    return pd.DataFrame(rows, columns=["What", *(f"Go {number}" for number in range(1, count + 1))])


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
    """One row a case that was compared with native PyTorch: its worst agreement in each respect, and the verdict.

    rows: results.parity_rows'. samples: results.load's, for what the cases are.
    """
    import pandas as pd

    cases = (
        samples[(samples["replica"] == 0) & ~samples["mode"].isin(["accuracy", "cold"])]
        .drop_duplicates("case")
        .sort_values(["prompts", "resolution", "batch"])
    )
    rank = ordered(cases["backend"])
    cases = cases.sort_values("backend", key=lambda names: names.map(rank.index), kind="stable").set_index("case")
    compared = {case: group for case, group in rows.groupby("case") if case != group["reference"].iloc[0]}
    table = []
    for case, about in cases.iterrows():
        if case not in compared:
            continue
        group = compared[case]
        outputs = group.dropna(subset="relative_error")
        found = group.dropna(subset="expected")
        # Of precisions whose tensors do not decide, only what is detected does; on this input, nothing was.
        unjudged = LIMITS[about["precision"]].relative is None and not found["expected"].any()
        worst = outputs.loc[outputs["relative_error"].idxmax()] if len(outputs) else None
        fewest = found.loc[[(found["matched"] - found["expected"]).idxmin()]] if len(found) else found
        table.append(
            {
                "Runtime": look(about["backend"]).label,
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
                "Verdict": "not judged" if unjudged else "passed" if group["passed"].all() else "FAILED",
            }
        )
    columns = ["Runtime", "Precision", "Side, pixels", "Images", "Prompt", "Relative error", "in", "Least cosine"]
    return pd.DataFrame(table, columns=[*columns, "Detections matched", "Verdict"])


def alike(run_dir: Path):
    """statistics.aa_check of the samples of one run."""
    from sam3lab.bench import results, statistics

    return statistics.aa_check(results.load(run_dir))


def twins(check):
    """The A/A check (statistics.aa_check) as a table."""
    import pandas as pd

    rows = [
        (row.label, row.stage, Estimate(row.ratio, row.low, row.high), row.verdict, bool(row.agrees))
        for row in check.itertuples()
    ]
    return pd.DataFrame(rows, columns=["Case", "Stage", "One over the other", "Verdict", "No difference shown"])


def failures(frame):
    """What failed, hung, was skipped or computed something else, and why; each reason once a case."""
    frame = frame[
        (frame["mode"] != "accuracy") | (frame["status"] != "skipped")
    ]  # its twin that is timed was skipped too
    kept = frame.drop_duplicates(["case", "status"])[["label", "status", "reason"]]
    return kept.rename(columns={"label": "Case", "status": "What happened", "reason": "Why"})
