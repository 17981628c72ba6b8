"""Tables about the measurements themselves: on what, whether all compute the same, whether twins agree, what failed."""

import math

from sam3lab.bench.parity import LIMITS
from sam3lab.bench.statistics import Estimate
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
        )
        for row in rows
    ]
    return pd.DataFrame(table, columns=["Ceiling", "Type", "Rate", "Unit", "Bytes copied, or side n"])


def parity(rows, samples):
    """One row a case that was compared with native PyTorch: its worst agreement in each respect, and the verdict.

    rows: results.parity_rows'. samples: results.load's, for what the cases are.
    """
    import pandas as pd

    cases = (
        samples[(samples["replica"] == 0) & (samples["mode"] != "accuracy")]
        .drop_duplicates("case")
        .sort_values(["prompts", "resolution"])
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
        table.append(
            {
                "Runtime": look(about["backend"]).label,
                "Precision": about["precision"],
                "Side, pixels": int(about["resolution"]),
                "Prompt": " | ".join(about["prompts"]),
                "Relative error": math.nan if worst is None else float(worst["relative_error"]),
                "in": "–" if worst is None else worst["output"],
                "Least cosine": f"{outputs['cosine'].min():.6f}",
                "Detections matched": " ".join(
                    f"{row.matched:.0f} of {row.expected:.0f}" for row in found.itertuples()
                ),
                "Verdict": "not judged" if unjudged else "passed" if group["passed"].all() else "FAILED",
            }
        )
    columns = ["Runtime", "Precision", "Side, pixels", "Prompt", "Relative error", "in", "Least cosine"]
    return pd.DataFrame(table, columns=[*columns, "Detections matched", "Verdict"])


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
