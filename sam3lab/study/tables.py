"""From samples to what is shown: estimates and ratios by group, the tables of the notebooks, and tables as HTML and CSV.

Frames of estimates have the columns value, low, high (95% interval); tables for people have an Estimate in a cell.
A case whose parity was not shown is left out of estimates and ratios, and stands in the tables as failed.
"""

import html
import io
import math

from sam3lab.bench.statistics import Estimate, agreeing, median_ci, ratio_ci, select, verdict
from sam3lab.errors import UserError
from sam3lab.study import numbers
from sam3lab.study.style import FILLS, look, ordered

NATIVE = "transformers"  # native PyTorch: the row that every other is compared with
ENDS = ["value", "low", "high"]
PEAK = {"stage": "process", "metric": "peak", "phase": "memory"}  # the rows that `with_peaks` adds
_OF_MEMORY = {"faster": "less", "slower": "more", "same": "equal"}
_PEAKS = {"cpu": ["rss_peak", "rss_peak_startup"], "cuda": ["gpu_peak"]}


def usable(samples):
    """The samples that a comparison may use: parity shown, and no A/A twin."""
    return agreeing(samples[samples["replica"] == 0])


def estimates(samples, stage: str = "pipeline", by=("backend",), metric: str = "wall", phase: str = "steady"):
    """The median of one quantity in each group: a frame with the columns `by`, value, low, high."""
    import pandas as pd

    groups = select(usable(samples), stage, metric, phase).groupby(list(by), sort=False)
    rows = [(*keys, *_ends(median_ci(group))) for keys, group in groups]
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
    rows = []
    for keys, group in groups.items():
        base = tuple(to.get(name, value) for name, value in zip(by, keys, strict=True))
        other = others.get(base)
        if base == keys and to_stage in (None, stage):  # itself, of which no noise need be told
            ratio = shown = Estimate(1.0, 1.0, 1.0)
        elif other is None:
            continue
        else:
            ratio = ratio_ci(group, other)
            shown = ratio_ci(other, group) if invert else ratio
        said = verdict(ratio)
        rows.append((*keys, *_ends(shown), _OF_MEMORY.get(said, said) if metric == PEAK["metric"] else said))
    if not rows:
        wanted = ", ".join(f"{name} {value}" for name, value in to.items()) or stage
        raise UserError(f"nothing can be compared: {wanted} was not measured, or failed (see the run's failures)")
    return pd.DataFrame(rows, columns=[*by, *ENDS, "verdict"])


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


def _ends(estimate: Estimate) -> tuple[float, float, float]:
    return estimate.value, estimate.low, estimate.high


def scaled(frame, factor: float = 1.0, less: float = 0.0):
    """A frame of estimates with every value times `factor`, less `less`."""
    return frame.assign(**{end: frame[end] * factor - less for end in ENDS})


def rates(latency, images: int = 1):
    """Images per second, one call after the other, from a frame of latencies in ms."""
    return latency.assign(
        value=1e3 * images / latency["value"], low=1e3 * images / latency["high"], high=1e3 * images / latency["low"]
    )


def shares(latency, flops: float, rate: float):
    """% of a rate of arithmetic in GFLOP/s that is reached by `flops` operations in each latency in ms."""
    return scaled(rates(latency), 100 * flops / 1e9 / rate)


def column(frame, by="backend") -> dict:
    """{group: Estimate} of a frame of estimates; `by` is one column, or a list of them."""
    groups = frame[by] if isinstance(by, str) else frame[by].itertuples(index=False, name=None)
    return {group: Estimate(*ends) for group, ends in zip(groups, frame[ENDS].to_numpy(), strict=True)}


def best(frame) -> str:
    """The runtime with the greatest value, in words."""
    return look(frame.loc[frame["value"].idxmax(), "backend"]).label


def trend(first: Estimate, last: Estimate) -> str:
    """How a value changes from `first` to `last`, in words: only what the intervals allow."""
    if last.low > first.high:
        return "grows"
    return "shrinks" if last.high < first.low else "stays the same within the intervals"


def parity(samples) -> dict[str, str]:
    """{case: "reference", "passed", "FAILED" or "missing"}."""
    known = samples.groupby("case")["parity"].first()
    return {case: "FAILED" if state == "failed" else state for case, state in known.items()}


def rows(samples, by=("backend",)):
    """The distinct groups of `by` among the cases, each once, with their parity: runtimes in their fixed order."""
    cases = samples[samples["replica"] == 0].drop_duplicates([*by])[[*by, "case"]]
    rank = {name: place for place, name in enumerate(ordered(cases["backend"]))}
    if "resolution" in by:
        cases = cases.sort_values("resolution", kind="stable")
    if "precision" in by:
        cases = cases.sort_values("precision", key=lambda names: names.map(list(FILLS).index), kind="stable")
    cases = cases.sort_values("backend", key=lambda names: names.map(rank), kind="stable")
    state = parity(samples)
    return [(row[:-1] if len(by) > 1 else row[0], state[row[-1]]) for row in cases.itertuples(index=False, name=None)]


def build(samples, columns: dict[str, dict], by=("backend",), names=("Runtime",)):
    """A table for people: one row a group of `by`, the columns given as {heading: {group: cell}}, and parity."""
    import pandas as pd

    lines = []
    for group, state in rows(samples, by):
        keys = group if len(by) > 1 else (group,)
        shown = [look(key).label if name == "backend" else key for name, key in zip(by, keys, strict=True)]
        cells = {heading: cells.get(group, math.nan) for heading, cells in columns.items()}
        lines.append(dict(zip(names, shown, strict=True)) | cells | {"Parity": state})
    return pd.DataFrame(lines)


def to_csv(frame) -> str:
    """The table with plain numbers: an estimate becomes three columns, the last two named "… low" and "… high"."""
    import pandas as pd

    plain = {}
    for name in frame.columns:
        values = list(frame[name])
        if any(isinstance(value, Estimate) for value in values):
            known = [
                value if isinstance(value, Estimate) else Estimate(math.nan, math.nan, math.nan) for value in values
            ]
            for suffix, end in (("", "value"), (" low", "low"), (" high", "high")):
                plain[f"{name}{suffix}"] = [getattr(value, end) for value in known]
        else:
            plain[name] = values
    buffer = io.StringIO()
    pd.DataFrame(plain).to_csv(buffer, index=False, lineterminator="\n", float_format="%.6g")
    return buffer.getvalue()


def _cell(value) -> tuple[str, bool]:
    """A cell's text, and whether it is a number."""
    if isinstance(value, Estimate):
        return numbers.interval(value.value, value.low, value.high), True
    if value is None:
        return "–", False
    if isinstance(value, bool):
        return "yes" if value else "no", False
    if isinstance(value, int | float) or hasattr(value, "dtype"):
        return (f"{value}" if isinstance(value, int) else numbers.digits(float(value))), True
    return html.escape(str(value)), False


def to_html(frame, caption: str) -> str:
    """The table for a page: numbers at the right, the first column as row headings, and failed rows marked."""
    cells = [[_cell(value) for value in row] for row in frame.itertuples(index=False, name=None)]
    right = [bool(cells) and all(line[place][1] for line in cells) for place in range(len(frame.columns))]

    def tag(name: str, text: str, place: int, extra: str = "") -> str:
        look = ' class="number" style="text-align:right"' if right[place] else ' style="text-align:left"'
        return f"<{name}{extra}{look}>{text}</{name}>"

    head = "".join(tag("th", html.escape(str(name)), place, ' scope="col"') for place, name in enumerate(frame.columns))
    body = ""
    for line in cells:
        failed = ' class="failed"' if any(text == "FAILED" for text, _ in line) else ""
        first = tag("th", line[0][0], 0, ' scope="row"')
        body += (
            f"<tr{failed}>{first}{''.join(tag('td', line[place][0], place) for place in range(1, len(line)))}</tr>\n"
        )
    caption = html.escape(caption)
    return (
        f'<div class="scroll" role="region" aria-label="{caption}" tabindex="0"><table><caption>{caption}</caption>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>"
    )
