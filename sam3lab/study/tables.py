"""From samples to what is shown: estimates and ratios by group, and the tables of the notebooks.

Frames of estimates have the columns value, low, high (95% interval, NaN of a single round); tables for people have an
Estimate in a cell. Noise from round to round is taken to be the same in all groups of a runtime and precision.
A case whose parity was not shown is left out of estimates and ratios, and stands in the tables as failed.
"""

import math

import numpy as np

from sam3lab.bench import statistics
from sam3lab.bench.statistics import Estimate, agreeing, select, verdict
from sam3lab.errors import UserError
from sam3lab.study.style import FILLS, look, looks, ordered

NATIVE = "transformers"  # native PyTorch: the row that every other is compared with
BY = ["backend", "precision"]  # a row of most tables
HEADINGS = ("Runtime", "Precision")
FP32 = {"backend": NATIVE, "precision": "fp32"}  # native PyTorch as it is when nothing is asked of it
ENDS = ["value", "low", "high"]
PEAK = {"stage": "process", "metric": "peak", "phase": "memory"}  # the rows that `with_peaks` adds
_OF_MEMORY = {"faster": "less", "slower": "more", "same": "equal"}
_PEAKS = {"cpu": ["rss_peak", "rss_peak_startup"], "cuda": ["gpu_peak"]}


def of(samples, cases):
    """The samples of these cases."""
    return samples[samples["case"].isin([case.id for case in cases])]


def usable(samples):
    """The samples that a comparison may use: parity shown, and no A/A twin."""
    return agreeing(samples[samples["replica"] == 0])


def estimates(samples, stage="pipeline", by=("backend",), metric="wall", phase="steady", q=0.5):
    """The median, or quantile q, of one quantity in each group: a frame with the columns `by`, value, low, high."""
    import pandas as pd

    groups = dict(list(select(usable(samples), stage, metric, phase).groupby(list(by), sort=False)))
    kinds: dict[tuple, list] = {}
    for keys, group in groups.items():
        kinds.setdefault(_kind(keys, by), []).append(statistics.logarithms(group, q))
    noise = {kind: statistics.pooled(cases) for kind, cases in kinds.items()}
    found = {keys: statistics.quantile_ci(group, q, noise=noise[_kind(keys, by)]) for keys, group in groups.items()}
    rows = [(*keys, *_ends(estimate)) for keys, estimate in found.items()]
    return pd.DataFrame(rows, columns=[*by, *ENDS])


def ratios(
    samples, stage="pipeline", by=("backend",), metric="wall", phase="steady", to=None, to_stage=None, invert=False
):
    """Each group's median over that of another group: a frame with the columns `by`, value, low, high, verdict.

    to: {column: value} by which the other group differs; native PyTorch if None. to_stage: its stage, if another.
    invert: the other group's median over this one's, "times as fast"; the verdict stays that of the times. A group whose
    other was not measured is left out; UserError where that leaves none.
    """
    import pandas as pd

    by, to = list(by), {"backend": NATIVE} if to is None else to
    good = usable(samples)
    groups = dict(list(select(good, stage, metric, phase).groupby(by, sort=False)))
    others = dict(list(select(good, to_stage or stage, metric, phase).groupby(by, sort=False)))
    bases = {keys: tuple(to.get(name, value) for name, value in zip(by, keys, strict=True)) for keys in groups}
    itself = [keys for keys in groups if bases[keys] == keys and to_stage in (None, stage)]
    pairs = {keys: (group, others[bases[keys]]) for keys, group in groups.items() if bases[keys] in others}
    blocks: dict[tuple, dict] = {}
    for keys, pair in pairs.items():
        if keys not in itself and len(differences := statistics.differences(*pair)):
            of_base = blocks.setdefault(_kind(keys, by), {}).setdefault((bases[keys], len(differences)), [])
            of_base.append(differences)
    noise = {kind: statistics.pooled_differences(map(np.array, found.values())) for kind, found in blocks.items()}
    rows = []
    for keys, (group, other) in pairs.items():
        if keys in itself:  # of which no noise need be told
            ratio = shown = Estimate(1.0, 1.0, 1.0)
        else:
            ratio = statistics.ratio_ci(group, other, noise=noise.get(_kind(keys, by)))
            shown = Estimate(1 / ratio.value, 1 / ratio.high, 1 / ratio.low) if invert else ratio
        said = verdict(ratio)
        rows.append((*keys, *_ends(shown), _OF_MEMORY.get(said, said) if metric == PEAK["metric"] else said))
    if not rows:
        wanted = ", ".join(f"{name} {value}" for name, value in to.items()) or stage
        raise UserError(f"nothing can be compared: {wanted} was not measured, or failed (see the run's failures)")
    return pd.DataFrame(rows, columns=[*by, *ENDS, "verdict"])


def against_fp32(samples, by=BY):
    """How many times as fast as native PyTorch in fp32 each group is, as `ratios`; no row where all are in fp32, of which
    the ratio in the same precision says the same.
    """
    if set(samples["precision"]) == {"fp32"}:
        return ratios(samples, by=by).iloc[:0]
    return ratios(samples, by=by, to=FP32, invert=True)


def with_disturbed(samples):
    """The samples, those that were kept apart counted too (see bench.host_speed): as a user of this machine has it."""
    return samples.assign(phase=samples["phase"].replace("disturbed", "steady"))


def counted(samples, by=BY, stage: str = "pipeline") -> dict:
    """{group: "so many of so many"}: the calls that count, of those that were timed."""
    calls, every = (select(usable(each), stage).groupby([*by]).size() for each in (samples, with_disturbed(samples)))
    return {group: f"{calls.get(group, 0)} of {count}" for group, count in every.items()}


def masks(samples) -> str:
    """What `end_to_end` ends with, in words: so many masks, or what results have that were measured when it made those of
    what scored high enough, which nothing did.
    """
    made = samples.loc[samples["metric"] == "masks", "value"]
    return f"{made.max():g} masks" if len(made) else "detections, of which there were none"


def with_peaks(samples, device: str):
    """The samples and, as PEAK says, the greatest memory of each process in MB, that of starting up included.

    That of the GPU where device is cuda, otherwise resident memory.
    """
    import pandas as pd

    of_memory = samples[(samples["phase"] == "memory") & samples["metric"].isin(_PEAKS[device])]
    most = of_memory.sort_values("value").drop_duplicates(["case", "round"], keep="last")
    return pd.concat([samples, most.assign(**PEAK)], ignore_index=True)


def times(samples, device: str, stages=("pipeline",), by=("backend",)):
    """Latency as a figure shows it: a frame with the columns `by`, stage, value, low, high.

    In ms where device is cuda; elsewhere relative to native PyTorch's pipeline in the same group, for the absolute times
    of a processor that others share say little.
    """
    if device == "cuda":
        return stacked({stage: estimates(samples, stage, by) for stage in stages})
    return stacked({stage: ratios(samples, stage, by, to_stage="pipeline") for stage in stages})


def stacked(parts: dict):
    """Frames by stage as one frame with a column more, stage."""
    import pandas as pd

    return pd.concat([frame.assign(stage=stage) for stage, frame in parts.items()], ignore_index=True)


def _kind(keys: tuple, by) -> tuple:
    """The runtime and precision of a group, whose noise from round to round is taken to be one."""
    return tuple(value for name, value in zip(by, keys, strict=True) if name in BY)


def _ends(estimate: Estimate) -> tuple[float, float, float]:
    return estimate.value, estimate.low, estimate.high


def scaled(frame, factor: float):
    """A frame of estimates with every value times `factor`."""
    return frame.assign(**{end: frame[end] * factor for end in ENDS})


def divided(frame, name: str, base: float = 1.0):
    """A frame of estimates with every value divided by its column `name` over `base`: the share of one of so many."""
    return frame.assign(**{end: frame[end] * base / frame[name] for end in ENDS})


def turned(frame):
    """A frame of estimates with one over every value."""
    return frame.assign(value=1 / frame["value"], low=1 / frame["high"], high=1 / frame["low"])


def rates(latency, images=1):
    """Images per second, one call after the other, from a frame of latencies in ms; images: in a call, perhaps by row."""
    return latency.assign(
        value=1e3 * images / latency["value"], low=1e3 * images / latency["high"], high=1e3 * images / latency["low"]
    )


def shares(latency, flops: float, rates_of: dict[str, float]):
    """% of the rate of arithmetic of its precision, in GFLOP/s, that `flops` operations reach in each latency in ms; a
    latency in a precision without a known rate is left out.
    """
    known = latency[latency["precision"].isin(rates_of)]
    per_second, rate = rates(known), known["precision"].map(rates_of)
    return per_second.assign(**{end: per_second[end] * (100 * flops / 1e9 / rate) for end in ENDS})


def multiples(latency, floors: dict[tuple, dict[str, float]], by=BY, stage: str = "pipeline"):
    """Each latency in ms as a multiple of the floor of its group and stage; a group without a floor is left out."""
    import pandas as pd

    groups = latency[[*by]].itertuples(index=False, name=None)
    floor = pd.Series([floors.get(group, {}).get(stage) for group in groups], latency.index, dtype=float)
    known = latency.assign(**{end: latency[end] / floor for end in ENDS})
    return known[floor.notna()]


def column(frame, by="backend") -> dict:
    """{group: Estimate} of a frame of estimates; `by` is one column, or a list of them."""
    groups = frame[by] if isinstance(by, str) else frame[by].itertuples(index=False, name=None)
    return {group: Estimate(*ends) for group, ends in zip(groups, frame[ENDS].to_numpy(), strict=True)}


def best(frame) -> str:
    """The runtime with the greatest value, in words; with its precision where the frame has several."""
    row = frame.loc[frame["value"].idxmax()]
    if "precision" not in frame:
        return look(row["backend"]).label
    return looks(frame[BY].itertuples(index=False, name=None))[row["backend"], row["precision"]].label


def trend(first: Estimate, last: Estimate) -> str:
    """How a value changes from `first` to `last`, in words: only what the intervals allow."""
    if math.isnan(first.low + last.low):
        return "cannot be told from one round"
    if last.low > first.high:
        return "grows"
    return "shrinks" if last.high < first.low else "does not change by more than the intervals allow"


def parity(samples) -> dict[str, str]:
    """{case: "reference", "passed", "FAILED" or "missing"}."""
    known = samples.groupby("case")["parity"].first()
    return {case: "FAILED" if state == "failed" else state for case, state in known.items()}


def rows(samples, by=("backend",)):
    """The distinct groups of `by` among the cases, each once, with their parity: runtimes in their fixed order."""
    cases = samples[samples["replica"] == 0].drop_duplicates([*by])[[*by, "case"]]
    rank = {name: place for place, name in enumerate(ordered(cases["backend"]))}
    for name in ("resolution", "batch", "count"):
        cases = cases.sort_values(name, kind="stable") if name in by else cases
    if "precision" in by:
        cases = cases.sort_values("precision", key=lambda names: names.map(list(FILLS).index), kind="stable")
    cases = cases.sort_values("backend", key=lambda names: names.map(rank), kind="stable")
    state = parity(samples)
    return [(row[:-1] if len(by) > 1 else row[0], state[row[-1]]) for row in cases.itertuples(index=False, name=None)]


def build(samples, columns: dict[str, dict], by=("backend",), names=("Runtime",), absent=None):
    """A table for people: one row a group of `by`, the columns given as {heading: {group: cell}}, and parity.

    absent: {(backend, precision): why} of what could not be run, whose rows say so at the end; `by` begins with BY then.
    """
    import pandas as pd

    lines = []
    missing = [((*group, *["–"] * (len(by) - 2)), why) for group, why in (absent or {}).items()]
    for group, state in [*rows(samples, by), *missing]:
        keys = group if len(by) > 1 else (group,)
        shown = [look(key).label if name == "backend" else key for name, key in zip(by, keys, strict=True)]
        cells = {heading: cells.get(group, math.nan) for heading, cells in columns.items()}
        lines.append(dict(zip(names, shown, strict=True)) | cells | {"Parity": state})
    return pd.DataFrame(lines)
