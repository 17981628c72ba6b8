"""From the records of the serving experiments to estimates: latencies and their ratios, and what a load does.

Frames of estimates have the columns backend, precision, value, low, high, as in `tables`. What is near in time is alike,
so that requests are cut into blocks of time, each of which stands for a round in sam3lab.bench.statistics. They are of one
process: how one start of a service differs from the next is in the intervals of starts alone.

A 95th percentile under load takes few blocks (OF_P95), since a queue remembers for long and a block's own percentile is
one of few. In a simulated queue at half of its capacity the interval of a median from 70 requests held the true one in 94%
of phases; that of a 95th percentile in 79% with five blocks and in 85% with three, and from 200 requests on in 91%. From
the capacity on a queue grows for as long as the phase lasts, which is then one observation: nothing has an interval.
"""

import math

import numpy as np
from scipy.special import stdtrit

from sam3lab.bench.statistics import BLOCKS, LEVEL, Estimate, in_blocks, median_ci, quantile_ci, ratio_ci, verdict
from sam3lab.study.tables import BY, ENDS

IDLE = "× an idle request's"  # how the units begin of what is told as a multiple of a request to an idle service
OF_P95 = 3  # blocks
LEAST_FOR_P95 = 40  # answers: two of them beyond it
LEAST_FOR_ITS_INTERVAL = 200
STAGES = ("image", "text", "detect")
STARTS = ("cold", "cached", "process", "preloaded")  # conditions, the dearest first
CACHED = ("neither", "prompt", "image", "both")
LISTED = ("phrase", "several")


def timed(rows, condition: str) -> dict:
    """{(backend, precision): the answered requests of a condition with the columns value, in ms, and round, the block};
    of few, as of starts, each is a block.
    """
    chosen = rows[(rows["condition"] == condition) & (rows["status"] == 200)].sort_values("place", kind="stable")
    groups = chosen.groupby(BY, sort=False)["latency"]
    return {group: in_blocks(each.to_numpy(), min(BLOCKS, len(each))) for group, each in groups}


def medians(rows, condition: str):
    """The median of each engine's requests of a condition, in ms."""
    return _frame([(*group, median_ci(each)) for group, each in timed(rows, condition).items()])


def ratios(rows, condition: str, base: str):
    """The median of a condition over that of another one, with the column verdict."""
    others = timed(rows, base)
    found = [
        (*group, ratio_ci(each, others[group])) for group, each in timed(rows, condition).items() if group in others
    ]
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

    backend, precision, experiment, load (the share of the capacity that was meant to be offered), share (what was: arrivals
    are random) and rate (that, per second), asked, answered (requests), in_time (the share of all that was answered within
    `deadline` seconds), refused (% answered 429, at once), failed (% with another status than that and 200, or none), batch
    (mean requests computed together); p50 and p95 (Estimate, ms, of those answered; None for no answer, and of p95 for
    fewer than LEAST_FOR_P95; which have an interval is said above).
    """
    import pandas as pd

    found = []
    for (*group, load), each in rows[rows["condition"] == "load"].groupby([*BY, "experiment", "load"], sort=False):
        right = each[each["status"] == 200].sort_values("at", kind="stable")
        latencies, count, refused = right["latency"].to_numpy(), len(right), each["status"] == 429
        rate = len(each) / each["seconds"].iloc[0]
        line = dict(zip([*BY, "experiment"], group, strict=True)) | {"load": load, "rate": rate}
        line |= {"share": load * rate / each["rate"].iloc[0]}
        line |= {"asked": len(each), "answered": count, "in_time": (latencies <= 1000 * deadline).sum() / len(each)}
        line |= {"refused": 100 * refused.mean(), "failed": 100 * (~refused & (each["status"] != 200)).mean()}
        line["batch"] = right["batch"].mean()
        steady, sure = load < 1, load < 1 and count >= LEAST_FOR_ITS_INTERVAL
        line["p50"] = quantile_ci(in_blocks(latencies, BLOCKS if steady else 1), 0.5) if count else None
        line["p95"] = quantile_ci(in_blocks(latencies, OF_P95 if sure else 1), 0.95) if count >= LEAST_FOR_P95 else None
        found.append(line)
    columns = [*BY, "experiment", "load", "share", "rate", "asked", "answered", "in_time", "refused", "failed", "batch"]
    return pd.DataFrame(found, columns=[*columns, "p50", "p95"]).astype({"p50": object, "p95": object})


def spread(frame, column: str):
    """A frame of estimates from a column of `curve` that holds them; rows without one are left out."""
    kept = frame[[isinstance(each, Estimate) for each in frame[column]]]
    return kept.assign(**{end: [getattr(each, end) for each in kept[column]] for end in ENDS})


def rate(moments, seconds: float) -> Estimate:
    """How many of these happen per second, with Student's interval, by factors, over the rates of BLOCKS."""
    counts = np.histogram(moments, BLOCKS, (0, seconds))[0] * (BLOCKS / seconds)
    mean = float(counts.mean())
    if not mean:
        return Estimate(0.0, 0.0, 0.0, BLOCKS)
    half = stdtrit(BLOCKS - 1, (1 + LEVEL) / 2) * counts.std(ddof=1) / mean / math.sqrt(BLOCKS)
    return Estimate(mean, float(mean * np.exp(-half)), float(mean * np.exp(half)), BLOCKS)


def faults(rows) -> dict[tuple[str, str], dict[str, float]]:
    """{(backend, precision): what the fault did}: requests, answered (%), refused (at once, because too many waited),
    lost (neither), moved (answered by another engine than the first), away and back (seconds from the fault until the service
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
            "refused": int((asked["status"] == 429).sum()),
            "lost": int((~asked["status"].isin([200, 429])).sum()),
            "moved": int((right["engine"] != group[0]).sum()),
            **{name: at[name] - killed if name in at else None for name in ("away", "back")},
        }
    return result


def _frame(found: list[tuple]):
    import pandas as pd

    rows = [(backend, precision, *(getattr(each, end) for end in ENDS)) for backend, precision, each in found]
    return pd.DataFrame(rows, columns=[*BY, *ENDS])
