"""What the figures are put together from: rows of dots, lines named at their ends, titles, legends."""

from sam3lab.study.numbers import digits
from sam3lab.study.style import MUTED, STAGES, by_runtime, look

PARTS = {"image": "image encoder", "text": "text encoder", "detect": "detector"}
DASHED = (0, (3, 2))


def title(axis, letter: str, text: str) -> None:
    """A panel's title, flush with the left edge of the figure."""
    from matplotlib.transforms import blended_transform_factory

    axis.set_title(" ")  # keeps the room
    place = blended_transform_factory(axis.get_figure().transSubfigure, axis.transAxes)
    label = axis.annotate(letter, (0, 1), (2, 5), place, "offset points", weight="bold", annotation_clip=False)
    axis.annotate(text, (0, 1), (12, 5), place, "offset points", annotation_clip=False).set_in_layout(False)
    label.set_in_layout(False)


def rows(axis, labels) -> None:
    """One row for each label, the first on top."""
    axis.set_yticks(range(len(labels)), labels, linespacing=0.95)
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0)


def reach(frame, least: float = 0.0) -> float:
    """Where an axis from 0 ends: past the intervals and `least`, but what is wider than its values are is cut there, and
    marked by `styled`. What has no interval counts with its value.
    """
    most = frame["value"].max()
    return max(most, min(frame["high"].fillna(frame["value"]).max(), 1.75 * most), least) * 1.07


def reference(axis, at: float, style="-") -> None:
    axis.axvline(at, color=MUTED, lw=0.7, ls=style, zorder=0)


def point(axis, row: float, each, color, marker: str, size: float = 4.5, **filling) -> None:
    """A value with its horizontal interval, if it has one (else low and high are NaN); `filling` is a Look's."""
    below, above = (max(0.0, gap) for gap in (each["value"] - each["low"], each["high"] - each["value"]))
    axis.errorbar(
        each["value"], row, xerr=[[below], [above]], fmt=marker, color=color, ms=size, elinewidth=0.9, **filling
    )


def marker(axis, seen, alpha: float = 1.0):
    """A look's marker, filled for its precision, of no point: for a legend."""
    style = {"color": seen.color, "ms": 6, "ls": "none", "alpha": alpha}
    return axis.plot([], [], marker=seen.marker, **style, **seen.filling)[0]


def value(axis, row: int, text: str) -> None:
    """A row's value in figures, in a column at the right of the axes."""
    axis.annotate(
        text, (1, row), (3, 0), ("axes fraction", "data"), "offset points", va="center", annotation_clip=False
    )


def dots(axis, frame, unit: str = "", significant: int | None = None) -> None:
    """One row for each runtime: its value, its interval, and the value in figures.

    significant: digits of each value; None for as many decimal places in every row as fit their size.
    """
    shown = [(seen, each.iloc[0]) for seen, each in by_runtime(frame)]
    rows(axis, [seen.short for seen, _ in shown])
    places = 2 if frame["value"].max() < 10 else 0 if frame["value"].min() >= 10 else 1
    for row, (seen, each) in enumerate(shown):
        point(axis, row, each, seen.color, seen.marker, **seen.filling)
        said = digits(each["value"], significant) if significant else digits(each["value"], places=places)
        value(axis, row, said + unit)


def lines(axis, frame, least: float = 0.0, over: str = "resolution") -> None:
    """One line a runtime over a column, with intervals, named at its end; the y axis goes from 0 past `least`."""
    ends = []
    for seen, rows in by_runtime(frame):
        rows = rows.sort_values(over)
        gaps = [(rows["value"] - rows["low"]).clip(lower=0), (rows["high"] - rows["value"]).clip(lower=0)]
        axis.errorbar(
            rows[over],
            rows["value"],
            yerr=gaps,
            fmt=f"-{seen.marker}",
            color=seen.color,
            elinewidth=0.9,
            **seen.filling,
        )
        ends.append((seen, rows[over].iloc[-1], rows["value"].iloc[-1]))
    top = reach(frame, least)
    axis.set_ylim(0, top)
    tall = [0.09 * top * (1 + seen.short.count("\n")) for seen, _, _ in ends]
    for (seen, end, value), place in zip(ends, spread([value for *_, value in ends], tall), strict=True):
        leader = {
            "arrowstyle": "-",
            "color": seen.color,
            "lw": 0.6,
            "shrinkA": 1,
            "shrinkB": 3,
            "relpos": (0, 0.5),
        }
        axis.annotate(
            seen.short,
            (end, value),
            (1.06, place),
            "data",
            ("axes fraction", "data"),
            va="center",
            linespacing=0.95,
            arrowprops=leader,
        )


def logarithmic(axis, low: float, high: float) -> None:
    """A logarithmic x axis over `low` to `high`, with a few ticks, written out."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_xscale("log")
    axis.set_xlim(low / 1.15, high * 1.15)
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 30 * low else (1, 3)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
    axis.xaxis.set_minor_locator(NullLocator())


def stage_legend(figure) -> None:
    from matplotlib.patches import Patch

    grey = look("transformers")
    handles = [Patch(facecolor=grey.tint(white), hatch=hatch, edgecolor="white") for white, hatch in STAGES.values()]
    legend(figure, handles, list(PARTS.values()), 3)


def legend_columns(shown) -> int:
    """How many columns the names of these looks leave room for."""
    return 2 if max(len(seen.label) for seen in shown) <= 22 else 1


def marker_legend(figure, axis, shown) -> None:
    """The markers of the runtimes' looks and their names, below the axes."""
    handles = [axis.plot([], [], seen.marker, color=seen.color, ms=4, **seen.filling)[0] for seen in shown]
    legend(figure, handles, [seen.label for seen in shown], legend_columns(shown))


def legend(figure, handles, labels, columns: int) -> None:
    figure.legend(
        handles,
        labels,
        loc="outside lower right",
        ncols=columns,
        handlelength=1.4,
        columnspacing=1.2,
        handletextpad=0.4,
        borderpad=0.1,
    )


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
