"""What the figures are put together from: rows of dots, lines named at their ends, titles, legends."""

from sam3lab.study.numbers import digits
from sam3lab.study.style import MUTED, STAGES, look, ordered

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
    """Where an axis from 0 ends: past the intervals and `least`, but what is wider than its values are is cut there."""
    most = frame["value"].max()
    return max(most, min(frame["high"].max(), 1.75 * most), least) * 1.07


def reference(axis, at: float, style="-") -> None:
    axis.axvline(at, color=MUTED, lw=0.7, ls=style, zorder=0)


def point(axis, row: float, each, color, marker: str, size: float = 4.5) -> None:
    """A value with its horizontal interval."""
    below, above = (max(0.0, gap) for gap in (each["value"] - each["low"], each["high"] - each["value"]))
    axis.errorbar(each["value"], row, xerr=[[below], [above]], fmt=marker, color=color, ms=size, elinewidth=0.9)


def cross(axis, each, seen, fill: str) -> None:
    """A point with its intervals both ways, from value, low, high and value_score, low_score, high_score."""
    x, y = each["value"], each["value_score"]
    gaps = [
        [[max(0.0, gap)] for gap in (v - each[f"low{end}"], each[f"high{end}"] - v)]
        for v, end in ((x, ""), (y, "_score"))
    ]
    axis.errorbar(x, y, gaps[1], gaps[0], fmt="none", ecolor=seen.color, elinewidth=0.7, alpha=0.6, zorder=1)
    style = {"color": seen.color, "markerfacecoloralt": "white", "mec": seen.color, "mew": 0.9, "ms": 6}
    style |= {"mfc": "white"} if fill == "none" else {"fillstyle": fill}
    axis.plot(x, y, seen.marker, **style, zorder=2)


def name(axis, x: float, edge: float, place: float, text: str, color: str, side: str) -> None:
    """A point's name at the height `place`, with a thin line to it from `edge`, the end of the point's interval."""
    axis.plot([x, x], [edge, place], color=MUTED, lw=0.5, zorder=0)
    offset = (2, 0) if side == "left" else (-2, 0)
    axis.annotate(text, (x, place), offset, "data", "offset points", ha=side, va="center", color=color)


def value(axis, row: int, text: str) -> None:
    """A row's value in figures, in a column at the right of the axes."""
    axis.annotate(
        text, (1, row), (3, 0), ("axes fraction", "data"), "offset points", va="center", annotation_clip=False
    )


def dots(axis, frame, unit: str = "") -> None:
    """One row for each runtime: its value, its interval, and the value in figures."""
    frame = frame.set_index("backend").loc[ordered(frame["backend"])]
    rows(axis, [look(name).short for name in frame.index])
    places = 2 if frame["value"].max() < 10 else 0 if frame["value"].min() >= 10 else 1
    for row, (name, each) in enumerate(frame.iterrows()):
        point(axis, row, each, look(name).color, look(name).marker)
        value(axis, row, digits(each["value"], places=places) + unit)


def lines(axis, frame, least: float = 0.0) -> None:
    """One line a runtime over the resolution, with intervals, named at its end; the y axis goes from 0 past `least`."""
    ends = {}
    for name in ordered(frame["backend"]):
        rows, seen = frame[frame["backend"] == name].sort_values("resolution"), look(name)
        gaps = [(rows["value"] - rows["low"]).clip(lower=0), (rows["high"] - rows["value"]).clip(lower=0)]
        axis.errorbar(
            rows["resolution"], rows["value"], yerr=gaps, fmt=f"-{seen.marker}", color=seen.color, elinewidth=0.9
        )
        ends[name] = rows["value"].iloc[-1]
    top = reach(frame, least)
    axis.set_ylim(0, top)
    tall = [0.09 * top * (1 + look(name).short.count("\n")) for name in ends]
    for (name, value), place in zip(ends.items(), spread(list(ends.values()), tall), strict=True):
        leader = {
            "arrowstyle": "-",
            "color": look(name).color,
            "lw": 0.6,
            "shrinkA": 1,
            "shrinkB": 3,
            "relpos": (0, 0.5),
        }
        axis.annotate(
            look(name).short,
            (frame["resolution"].max(), value),
            (1.06, place),
            "data",
            ("axes fraction", "data"),
            va="center",
            linespacing=0.95,
            arrowprops=leader,
        )


def stage_legend(figure) -> None:
    from matplotlib.patches import Patch

    grey = look("transformers")
    handles = [Patch(facecolor=grey.tint(white), hatch=hatch, edgecolor="white") for white, hatch in STAGES.values()]
    legend(figure, handles, list(PARTS.values()), 3)


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
