"""From the records of the serving experiments to estimates: latencies and their ratios, and what a load does.

Frames of estimates have the columns backend, precision, value, low, high, as in `tables`. Requests that were made one
after the other, or within a phase, are cut into BLOCKS by time; a block stands for a round in sam3lab.bench.statistics,
so that intervals are those of a bootstrap by blocks, which knows that what is near in time is alike.
"""

import math
from dataclasses import replace

import numpy as np
from scipy.special import stdtrit

from sam3lab.bench.statistics import LEVEL, Estimate, median_ci, quantile_ci, ratio_ci, verdict
from sam3lab.study.tables import BY, ENDS

BLOCKS = 5
LEAST_FOR_P95 = 40  # two samples beyond it
STAGES = ("image", "text", "detect")
STARTS = ("cold", "cached", "process", "preloaded")  # conditions, the dearest first
CACHED = ("neither", "prompt", "image", "both")
LISTED = ("phrase", "several")


def timed(rows, condition: str, column: str = "latency"):
    """The answered requests of a condition with the columns value and round, its block; each start is a round."""
    chosen = rows[(rows["condition"] == condition) & (rows["status"] == 200) & rows[column].notna()]
    count = chosen.groupby(BY)["place"].transform("max") + 1
    block = (chosen["place"] * BLOCKS // count).where(count >= BLOCKS, chosen["place"])
    return chosen.assign(value=chosen[column], round=block)


def medians(rows, condition: str, column: str = "latency"):
    """The median of each engine's requests of a condition, in ms."""
    groups = timed(rows, condition, column).groupby(BY, sort=False)
    return _frame([(*group, median_ci(each)) for group, each in groups])


def ratios(rows, condition: str, base: str):
    """The median of a condition over that of another one, with the column verdict."""
    others = dict(list(timed(rows, base).groupby(BY, sort=False)))
    found = []
    for group, each in timed(rows, condition).groupby(BY, sort=False):
        if group in others:
            found.append((*group, ratio_ci(each, others[group])))
    return _frame(found).assign(verdict=[verdict(each[-1]) for each in found])


def parts(rows):
    """What answers are made of, by what was cached: backend, precision, condition, stage, value (mean ms).

    Means, because they add up. "rest": whatever is not one of the three stages.
    """
    import pandas as pd

    found = []
    for (backend, precision, condition), each in rows[rows["condition"].isin(CACHED)].groupby(
        [*BY, "condition"], sort=False
    ):
        means = {stage: each[stage].mean() for stage in STAGES}
        means["rest"] = each["latency"].mean() - sum(means.values())
        found += [(backend, precision, condition, stage, value) for stage, value in means.items()]
    return pd.DataFrame(found, columns=[*BY, "condition", "stage", "value"])


def calls(rows, stage: str) -> dict[str, int]:
    """{condition: how often a stage ran for its requests} of the requests with and without cached features."""
    chosen = rows[rows["condition"].isin(CACHED)]
    return {condition: int(each[f"{stage}_calls"].sum()) for condition, each in chosen.groupby("condition", sort=False)}


def found_of_lists(rows) -> dict[str, dict[str, float]]:
    """{condition: {"share": % of the objects found, "extra": instances too many, "expected": objects}}, where judged."""
    judged = rows[(rows["experiment"] == "list") & rows["expected"].notna()]
    result = {}
    for condition, each in judged.groupby("condition", sort=False):
        expected, found, extra = (each[name].sum() for name in ("expected", "found", "extra"))
        result[condition] = {"share": 100 * found / expected, "extra": int(extra), "expected": int(expected)}
    return result


def capacities(rows, experiment: str):
    """Answers per second in the closed loop of "single" or "batched"."""
    closed = rows[(rows["experiment"] == experiment) & (rows["condition"] == "capacity")]
    found = []
    for group, each in closed.groupby(BY, sort=False):
        seconds, right = each["seconds"].iloc[0], each[each["status"] == 200]
        found.append((*group, rate(right["at"] + right["latency"] / 1000, seconds)))
    return _frame(found)


def curve(rows, deadline: float):
    """One row an engine, experiment ("single" or "batched") and load.

    backend, precision, experiment, load, rate (offered, per second), count (requests), refused (% answered 429 or 503),
    failed (% with another status or none), batch (mean requests computed together); and the estimates, as Estimate,
    goodput (per second, answered within `deadline` seconds), p50 and p95 (ms, of those answered; None for fewer than
    LEAST_FOR_P95).
    """
    import pandas as pd

    found = []
    for (*group, load), each in rows[rows["condition"] == "load"].groupby([*BY, "experiment", "load"], sort=False):
        seconds, right = each["seconds"].iloc[0], each[each["status"] == 200]
        timed = right.assign(value=right["latency"], round=_block(right["at"], seconds))
        in_time = right[right["latency"] <= 1000 * deadline]
        line = dict(zip([*BY, "experiment"], group, strict=True)) | {"load": load, "rate": each["rate"].iloc[0]}
        goodput = rate(in_time["at"], seconds)  # of which no interval can be past what was asked for
        goodput = replace(goodput, high=min(goodput.high, max(goodput.value, len(each) / seconds)))
        line |= {"count": len(each), "batch": right["batch"].mean(), "goodput": goodput}
        refused = each["status"].isin([429, 503])
        line |= {"refused": 100 * refused.mean(), "failed": 100 * (~refused & (each["status"] != 200)).mean()}
        line["p50"] = quantile_ci(timed, 0.5) if len(timed) else None
        line["p95"] = quantile_ci(timed, 0.95) if len(timed) >= LEAST_FOR_P95 else None
        found.append(line)
    columns = [*BY, "experiment", "load", "rate", "count", "refused", "failed", "batch", "goodput", "p50", "p95"]
    return pd.DataFrame(found, columns=columns).astype({"p50": object, "p95": object})


def spread(frame, column: str):
    """A frame of estimates from a column of `curve` that holds them; rows without one are left out."""
    kept = frame[[isinstance(each, Estimate) for each in frame[column]]]
    return kept.assign(**{end: [getattr(each, end) for each in kept[column]] for end in ENDS})


def rate(moments, seconds: float) -> Estimate:
    """How many of these happen per second, with Student's interval, by factors, over the rates of BLOCKS."""
    moments = np.asarray(moments, dtype=np.float64)
    counts = np.bincount(_block(moments[moments <= seconds], seconds), minlength=BLOCKS) * (BLOCKS / seconds)
    mean = float(counts.mean())
    if not mean:
        return Estimate(0.0, 0.0, 0.0, BLOCKS)
    half = stdtrit(BLOCKS - 1, (1 + LEVEL) / 2) * counts.std(ddof=1) / mean / math.sqrt(BLOCKS)
    return Estimate(mean, float(mean * np.exp(-half)), float(mean * np.exp(half)), BLOCKS)


def faults(rows) -> dict[tuple[str, str], dict[str, float]]:
    """{(backend, precision): what the fault did}: requests, answered (%), lost (neither answered nor refused because of
    load), moved (answered by another engine than the first), away and back (seconds from the fault until the service
    says that the first engine does not, and does, answer; None where it never said so).
    """
    result = {}
    for group, each in rows[(rows["experiment"] == "fault") & (rows["error"] == "")].groupby(BY, sort=False):
        at = dict(zip(each["event"], each["at"], strict=True))
        asked = each[each["condition"] == "fault"]
        right = asked[asked["status"] == 200]
        killed = at["killed"]
        result[group] = {
            "requests": len(asked),
            "answered": 100 * len(right) / len(asked),
            "lost": int((~asked["status"].isin([200, 429])).sum()),
            "moved": int((right["engine"] != group[0]).sum()),
            **{name: at[name] - killed if name in at else None for name in ("away", "back")},
        }
    return result


def _block(moments, seconds: float):
    return np.clip(np.asarray(moments) / seconds * BLOCKS, 0, BLOCKS - 1).astype(np.intp)


def _frame(found: list[tuple]):
    import pandas as pd

    rows = [(backend, precision, *(getattr(each, end) for end in ENDS)) for backend, precision, each in found]
    return pd.DataFrame(rows, columns=[*BY, *ENDS])
