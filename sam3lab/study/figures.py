"""The figures: each takes tidy frames with the columns value, low, high (95% interval) and returns a matplotlib figure."""

import math

from sam3lab.study.numbers import digits
from sam3lab.study.style import BAND, INK, MUTED, STAGES, look, new, ordered, styled

PANELS = {
    "pipeline": "Whole pipeline",
    "text": "Text stage alone",
    "detect": "Detector alone",
    "pipeline_cached": "Pipeline, text features cached",
}
PARTS = {"image": "image encoder", "text": "text encoder", "detect": "detector"}
DASHED = (0, (3, 2))


@styled
def machine(overhead, fractions):
    """What the harness costs, and how near the runtimes come to the machine's rate of matrix products.

    overhead: an estimate in % of a call. fractions: backend, value, low, high in % of the ceiling.
    """
    rows = 0.32 * len(fractions)
    figure, (top, bottom) = new(1.5 + rows, 2, height_ratios=[0.26, rows])
    _rows(top, ["the harness"])
    _point(top, 0, {end: getattr(overhead, end) for end in ("value", "low", "high")}, INK, "o")
    _value(top, 0, f"{digits(overhead.value, 2)}%")
    top.set_xlim(min(0, overhead.low * 1.3), max(2.2, overhead.high * 1.1))
    _reference(top, 2, DASHED)
    top.set_xlabel("% of a call of known length (dashed: the limit)", loc="right")
    _title(top, "a", "Cost of measuring")
    _dots(bottom, fractions, "%")
    bottom.set_xlim(0, min(100, fractions["high"].max() * 1.1))
    bottom.set_xlabel("% of the highest rate measured on this machine", loc="right")
    _title(bottom, "b", "Rate of arithmetic in the whole pipeline")
    return figure


@styled
def runtimes(total, stages, absolute: bool = False):
    """Latency of each runtime and what it is made of.

    total: backend, value, low, high of the pipeline. stages: backend, stage, value. Both relative to the pipeline of
    native PyTorch, or in ms where `absolute`.
    """
    names = ordered(total["backend"])
    figure, (top, bottom) = new(1.2 + 0.56 * len(names), 2, sharex=True)
    _dots(top, total)
    if not absolute:
        _reference(top, 1)
    _title(top, "a", "Pipeline, pixels to raw detections")
    _rows(bottom, [look(name).short for name in names])
    part = stages.set_index(["backend", "stage"])["value"]
    for row, name in enumerate(names):
        left = 0.0
        for stage, (white, hatch) in STAGES.items():
            width = part.get((name, stage), 0.0)
            bottom.barh(row, width, 0.62, left, color=look(name).tint(white), hatch=hatch, edgecolor="white", lw=0.6)
            left += width
    bottom.set_xlim(0, max(total["high"].max(), stages.groupby("backend")["value"].sum().max()) * 1.06)
    bottom.set_xlabel("latency, ms" if absolute else "latency relative to PyTorch (transformers)", loc="right")
    _title(bottom, "b", "Stage by stage")
    _stage_legend(figure)
    return figure


@styled
def resolution(relative, growth, absolute: bool = False):
    """How latency, and its ratio to native PyTorch, change with the image's side.

    relative: backend, resolution, value, low, high against native PyTorch at the same resolution (ms if `absolute`).
    growth: the same against the runtime's own smallest resolution.
    """
    figure, (top, bottom) = new(4.3, 2, sharex=True)
    sides = sorted(growth["resolution"].unique())
    _lines(top, relative)
    top.set_ylabel("ms" if absolute else "relative to PyTorch\n(transformers)")
    _title(top, "a", "Latency" if absolute else "Latency against native PyTorch at the same size")
    _lines(bottom, growth, least=(sides[-1] / sides[0]) ** 2)
    bottom.plot(sides, [(side / sides[0]) ** 2 for side in sides], color=MUTED, lw=0.8, ls=DASHED, zorder=1)
    bottom.set(ylabel="relative to its own\nat the smallest size", xlabel="side of the image, pixels", xticks=sides)
    _title(bottom, "b", "Growth with size (dashed: number of pixels)")
    return figure


@styled
def prompts(frame):
    """What a prompt costs, by kind: the pipeline, its prompt-dependent stages, and the pipeline with cached text.

    frame: backend, condition, stage, value, low, high relative to the same runtime's pipeline with one word.
    """
    conditions, names = list(dict.fromkeys(frame["condition"])), ordered(frame["backend"])
    stages = [stage for stage in PANELS if stage in set(frame["stage"])]
    figure, axes = new(0.8 + (0.3 + 0.23 * len(conditions)) * len(stages), len(stages), sharex=True, squeeze=False)
    step = 0.66 / max(len(names) - 1, 1)
    for letter, stage, axis in zip("abcd", stages, axes[:, 0], strict=False):
        _rows(axis, conditions)
        for row in range(0, len(conditions), 2):
            axis.axhspan(row - 0.5, row + 0.5, color=BAND, lw=0, zorder=-1)
        _reference(axis, 1)
        for _, each in frame[frame["stage"] == stage].iterrows():
            seen, dodge = look(each["backend"]), (names.index(each["backend"]) - (len(names) - 1) / 2) * step
            _point(axis, conditions.index(each["condition"]) + dodge, each, seen.color, seen.marker, 3)
        _title(axis, letter, PANELS[stage])
    axes[-1, 0].set_xlim(0, frame["high"].max() * 1.06)
    axes[-1, 0].set_xlabel("relative to the same runtime's\npipeline with one word")
    handles = [axes[0, 0].plot([], [], look(name).marker, color=look(name).color, ms=4)[0] for name in names]
    _legend(figure, handles, [look(name).label for name in names], 2)
    return figure


@styled
def memory(loaded, peak, side: int):
    """Memory of each runtime: after loading and at its peak at one resolution, and the peak at every resolution.

    loaded: backend, value in MB. peak: backend, resolution, value, low, high in MB. side: the upper panel's resolution.
    """
    from matplotlib.figure import Figure

    scale, unit = (1000, "GB") if peak["value"].max() >= 2000 else (1, "MB")
    peak = peak.assign(**{name: peak[name] / scale for name in ("value", "low", "high")})
    here, before = peak[peak["resolution"] == side].set_index("backend"), loaded.set_index("backend")["value"] / scale
    names = ordered(here.index)
    upper, lower = 0.75 + 0.3 * len(names), 2.2
    figure = Figure(figsize=(new(1)[0].get_figwidth(), upper + lower), layout="constrained")
    top, bottom = (part.subplots() for part in figure.subfigures(2, 1, height_ratios=[upper, lower]))
    _rows(top, [look(name).short for name in names])
    for row, name in enumerate(names):
        value, start, seen = here["value"][name], before.get(name, math.nan), look(name)
        top.plot([start, value], [row, row], color=seen.color, zorder=1)
        top.plot(start, row, seen.marker, mfc="white", mec=seen.color, mew=1, zorder=2)
        _point(top, row, here.loc[name], seen.color, seen.marker)
        _value(top, row, f"{digits(value)} {unit}")
    top.set_xlim(0, here["high"].max() * 1.08)
    top.set_xlabel(unit)
    _title(top, "a", f"After loading (open) and at its peak, {side} pixels")
    _lines(bottom, peak)
    bottom.set(ylabel=unit, xlabel="side of the image, pixels", xticks=sorted(peak["resolution"].unique()))
    _title(bottom, "b", "Peak by size of the image")
    return figure


def _title(axis, letter: str, text: str) -> None:
    """A panel's title, flush with the left edge of the figure."""
    from matplotlib.transforms import blended_transform_factory

    axis.set_title(" ")  # keeps the room
    place = blended_transform_factory(axis.get_figure().transSubfigure, axis.transAxes)
    label = axis.annotate(letter, (0, 1), (2, 5), place, "offset points", weight="bold", annotation_clip=False)
    axis.annotate(text, (0, 1), (12, 5), place, "offset points", annotation_clip=False).set_in_layout(False)
    label.set_in_layout(False)


def _rows(axis, labels) -> None:
    """One row for each label, the first on top."""
    axis.set_yticks(range(len(labels)), labels, linespacing=0.95)
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0)


def _reference(axis, at: float, style="-") -> None:
    axis.axvline(at, color=MUTED, lw=0.7, ls=style, zorder=0)


def _point(axis, row: float, each, color, marker: str, size: float = 4.5) -> None:
    """A value with its horizontal interval."""
    below, above = (max(0.0, gap) for gap in (each["value"] - each["low"], each["high"] - each["value"]))
    axis.errorbar(each["value"], row, xerr=[[below], [above]], fmt=marker, color=color, ms=size, elinewidth=0.9)


def _value(axis, row: int, text: str) -> None:
    """A row's value in figures, in a column at the right of the axes."""
    axis.annotate(text, (1, row), (3, 0), ("axes fraction", "data"), "offset points", va="center", annotation_clip=False)


def _dots(axis, frame, unit: str = "") -> None:
    """One row for each runtime: its value, its interval, and the value in figures."""
    frame = frame.set_index("backend").loc[ordered(frame["backend"])]
    _rows(axis, [look(name).short for name in frame.index])
    places = 2 if frame["value"].max() < 10 else 0 if frame["value"].min() >= 10 else 1
    for row, (name, each) in enumerate(frame.iterrows()):
        _point(axis, row, each, look(name).color, look(name).marker)
        _value(axis, row, digits(each["value"], places=places) + unit)


def _lines(axis, frame, least: float = 0.0) -> None:
    """One line a runtime over the resolution, with intervals, named at its end; the y axis goes from 0 past `least`."""
    ends = {}
    for name in ordered(frame["backend"]):
        rows, seen = frame[frame["backend"] == name].sort_values("resolution"), look(name)
        gaps = [(rows["value"] - rows["low"]).clip(lower=0), (rows["high"] - rows["value"]).clip(lower=0)]
        axis.errorbar(rows["resolution"], rows["value"], yerr=gaps, fmt=f"-{seen.marker}", color=seen.color, elinewidth=0.9)
        ends[name] = rows["value"].iloc[-1]
    top = max(frame["high"].max(), frame["value"].max(), least) * 1.08
    axis.set_ylim(0, top)
    tall = [0.09 * top * (1 + look(name).short.count("\n")) for name in ends]
    for (name, value), place in zip(ends.items(), spread(list(ends.values()), tall), strict=True):
        leader = {"arrowstyle": "-", "color": look(name).color, "lw": 0.6, "shrinkA": 1, "shrinkB": 3, "relpos": (0, 0.5)}
        axis.annotate(look(name).short, (frame["resolution"].max(), value), (1.06, place), "data",
                      ("axes fraction", "data"), va="center", linespacing=0.95, arrowprops=leader)


def _stage_legend(figure) -> None:
    from matplotlib.patches import Patch

    grey = look("transformers")
    handles = [Patch(facecolor=grey.tint(white), hatch=hatch, edgecolor="white") for white, hatch in STAGES.values()]
    _legend(figure, handles, list(PARTS.values()), 3)


def _legend(figure, handles, labels, columns: int) -> None:
    figure.legend(handles, labels, loc="outside lower right", ncols=columns, handlelength=1.4, columnspacing=1.2,
                  handletextpad=0.4, borderpad=0.1)


def spread(values: list[float], heights: list[float]) -> list[float]:
    """Centres near `values` for labels of these heights, in the same order, such that no two labels overlap."""
    order = sorted(range(len(values)), key=values.__getitem__)
    groups: list[list[int]] = []  # runs of labels that touch, each placed around the mean of what its members want

    def span(group):
        centre = sum(values[index] for index in group) / len(group)
        size = sum(heights[index] for index in group)
        return centre - size / 2, centre + size / 2

    for index in order:
        groups.append([index])
        while len(groups) > 1 and span(groups[-1])[0] < span(groups[-2])[1]:
            groups[-2:] = [groups[-2] + groups[-1]]
    places = [0.0] * len(values)
    for group in groups:
        low = span(group)[0]
        for index in group:
            places[index] = low + heights[index] / 2
            low += heights[index]
    return places
