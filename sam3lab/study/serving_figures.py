"""The figures of serving: latency and answers in time against load, starts and cached features, and a fault on a time line."""

from sam3lab.study import panels
from sam3lab.study.numbers import digits
from sam3lab.study.serving_numbers import CACHED, STARTS, spread
from sam3lab.study.style import BAND, INK, MUTED, STAGES, by_runtime, look, new, styled

QUANTILES = {"p50": "-", "p95": panels.DASHED}
BATCHING = {"single": ("without batching", "white"), "batched": ("with batching", None)}  # and the marker's filling
START_NAMES = {
    "cold": "first start, cold",
    "cached": "start, all made before",
    "process": "a process a request",
    "preloaded": "running service",
}
CACHE_NAMES = {"neither": "all new", "prompt": "prompt cached", "image": "image cached", "both": "both cached"}
REST = ("#d9d9d9", "")
_LATENCY = {True: "ms, logarithmic", False: "times an idle request,\nlogarithmic"}  # by whether times are absolute


@styled
def load(curve, deadline: str, absolute: bool = False):
    """Latency against offered load, a panel an engine, then what is answered in time, and what is refused.

    curve: as serving_numbers.curve, in ms and per second where `absolute`; otherwise latencies relative to a request to
    the idle service, rates to the capacity without batching. deadline: in words.
    """
    shown = by_runtime(curve)
    figure, axes = new(1.0 + 1.75 * (len(shown) + 1) + 1.1, len(shown) + 2, sharex=True, squeeze=False,
                       height_ratios=[1.6] * (len(shown) + 1) + [1.0])  # fmt: skip
    *latency, goodput, refused = axes[:, 0]
    letters = iter("abcdefgh")
    for axis, (seen, rows) in zip(latency, shown, strict=True):
        for name, style in QUANTILES.items():
            for experiment, each in rows.groupby("experiment", sort=False):
                _line(axis, spread(each, name), "rate", seen, experiment, style)
        axis.set_yscale("log")
        _plain(axis)
        axis.set_ylabel(_LATENCY[absolute])
        panels.title(axis, next(letters), f"Latency, {seen.label}: p50 and, dashed, p95")
    most = curve["rate"].max()
    goodput.plot([0, most], [0, most], color=MUTED, lw=0.8, ls=(0, (1, 2)), zorder=0)
    for seen, rows in shown:
        for experiment, each in rows.groupby("experiment", sort=False):
            style = {"color": seen.color, "marker": seen.marker, "ms": 4, **_filling(seen, experiment)}
            goodput.plot(each["rate"], each["rate"] * each["in_time"], **style)
            refused.plot(each["rate"], each["refused"], **style)
    goodput.set_ylim(0, None)
    goodput.set_ylabel("requests/s" if absolute else "share of\ncapacity")
    panels.title(goodput, next(letters), f"Answered within {deadline} (dotted: all)")
    refused.set_ylim(-4, 104)
    refused.set_ylabel("%")
    panels.title(refused, next(letters), "Refused at once")
    refused.set_xlim(0, most * 1.05)
    refused.set_xlabel("offered, requests/s" if absolute else "offered, share of the capacity without batching")
    _legend(figure, goodput, [seen for seen, _ in shown], set(curve["experiment"]))
    return figure


@styled
def costs(starts, parts, absolute: bool = False):
    """What a start costs beside a request to a running service, and what cached features save.

    starts: condition (of STARTS), value, low, high, in s where `absolute`, else relative to a request to the running
    service. parts: as serving_numbers.parts, in ms, else relative to a request of which nothing is cached.
    """
    shown, made = by_runtime(starts), by_runtime(parts)
    from matplotlib.ticker import LogLocator

    conditions = [name for name in STARTS if name in set(starts["condition"])]
    kinds = [name for name in CACHED if name in set(parts["condition"])]
    upper, lower = 0.75 + 0.27 * len(conditions), 0.6 + 0.24 * len(kinds) * len(made)
    figure, (top, bottom) = new(upper + lower + 0.35, 2, height_ratios=[upper, lower])
    panels.rows(top, [START_NAMES[name] for name in conditions])
    step = 0.5 / max(len(shown) - 1, 1)
    for place, (seen, rows) in enumerate(shown):
        for _, each in rows.iterrows():
            row = conditions.index(each["condition"]) + (place - (len(shown) - 1) / 2) * step
            panels.point(top, row, each, seen.color, seen.marker)
    for row, name in enumerate(conditions):
        values = [rows.loc[rows["condition"] == name, "value"] for _, rows in shown]
        said = " / ".join(digits(each.iloc[0], 2) if len(each) else "–" for each in values)
        panels.value(top, row, said + (" s" if absolute else "×"))
    low, high = starts["low"].fillna(starts["value"]).min() / 1.2, 1.2 * panels.reach(starts)
    panels.logarithmic(top, low, high)
    if high > 300 * low:
        top.xaxis.set_major_locator(LogLocator())
    unit = "seconds to the first answer" if absolute else "times a request to the running service"
    top.set_xlabel(f"{unit}, logarithmic", loc="right")
    panels.title(top, "a", "Until the first answer")
    several = len(made) > 1
    labels = [
        f"{seen.name}:\n{CACHE_NAMES[kind]}" if several and kind == kinds[0] else CACHE_NAMES[kind]
        for seen, _ in made
        for kind in kinds
    ]
    panels.rows(bottom, labels)
    for place, (seen, rows) in enumerate(made):
        for row, kind in enumerate(kinds, place * len(kinds)):
            _bar(bottom, row, rows[rows["condition"] == kind].set_index("stage")["value"], seen)
    bottom.set_xlabel("ms" if absolute else "times a request with nothing cached", loc="right")
    panels.title(bottom, "b", "A request, by what the service has seen before")
    _stage_legend(figure)
    return figure


@styled
def fault(records, events: dict[tuple[str, str], dict[str, float]], absolute: bool = False):
    """Every answer after a fault, when it was asked for and how long it took, in the colour of its engine.

    records: backend, precision, at (s), latency, status, engine; latency in ms, or relative to a request to the idle
    service. events: {(backend, precision): {event: s}}, of killed, away and back; the grey band is from killed to back.
    """
    shown = by_runtime(records)
    figure, axes = new(0.7 + 1.9 * len(shown), len(shown), squeeze=False)
    engines: dict[str, object] = {}
    unanswered = False
    for letter, axis, (seen, rows) in zip("abcd", axes[:, 0], shown, strict=False):
        right, wrong = rows[rows["status"] == 200], rows[rows["status"] != 200]
        for engine, each in right.groupby("engine", sort=False):
            one = engines.setdefault(engine, look(str(engine).removesuffix("-cpu")))
            axis.plot(each["at"], each["latency"], ls="none", marker=one.marker, color=one.color, ms=3, alpha=0.8)
        at = events[rows["backend"].iloc[0], rows["precision"].iloc[0]]
        axis.axvspan(at["killed"], at.get("back", rows["at"].max()), color=BAND, lw=0, zorder=-1)
        axis.axvline(at["killed"], color=INK, lw=0.9)
        if len(wrong):  # nothing at a place in units of the axes upsets the layout
            unanswered = True
            place, style = axis.get_xaxis_transform(), {"color": INK, "ms": 4, "mew": 0.9}
            axis.plot(wrong["at"], [0.95] * len(wrong), "x", transform=place, clip_on=False, **style)
        axis.set_yscale("log")
        _plain(axis)
        axis.set_ylabel(_LATENCY[absolute])
        axis.set_xlim(0, rows["at"].max())
        panels.title(axis, letter if len(shown) > 1 else "", f"Killed (line), and until {seen.name} is back (grey)")
    axes[-1, 0].set_xlabel("seconds")
    handles = [axes[0, 0].plot([], [], one.marker, color=one.color, ms=4)[0] for one in engines.values()]
    names = [one.name + (" (CPU)" if str(engine).endswith("-cpu") else "") for engine, one in engines.items()]
    if unanswered:
        handles.append(axes[0, 0].plot([], [], "x", color=INK, ms=4)[0])
        names.append("not answered")
    panels.legend(figure, handles, names, 3 if len(names) < 4 else 2)
    return figure


def _line(axis, frame, x: str, seen, experiment: str, style) -> None:
    frame = frame.sort_values(x)
    if frame.empty:
        return
    gaps = [(frame["value"] - frame["low"]).clip(lower=0), (frame["high"] - frame["value"]).clip(lower=0)]
    look = {"color": seen.color, "ms": 4, "elinewidth": 0.7, **_filling(seen, experiment)}
    axis.errorbar(frame[x], frame["value"], yerr=gaps, marker=seen.marker, ls=style, **look)


def _filling(seen, experiment: str) -> dict:
    white = BATCHING[experiment][1]
    return {"mfc": white, "mec": seen.color} if white else {}


def _plain(axis) -> None:
    """A few ticks on a logarithmic y axis, written out."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = axis.get_ylim()
    low, high = low / 1.2, max(high, 12 * low)  # a decade at least, over which the ticks are
    axis.set_ylim(low, high)
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 3) if high < 100 * low else (1,)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
    axis.yaxis.set_minor_locator(NullLocator())


def _bar(axis, row: int, part, seen) -> None:
    left = 0.0
    for stage, (white, hatch) in STAGES.items():
        axis.barh(row, part[stage], 0.62, left, color=seen.tint(white), hatch=hatch, edgecolor="white", lw=0.6)
        left += part[stage]
    axis.barh(row, max(0.0, part["rest"]), 0.62, left, color=REST[0], edgecolor="white", lw=0.6)


def _stage_legend(figure) -> None:
    from matplotlib.patches import Patch

    grey = look("transformers")
    made = [Patch(facecolor=grey.tint(white), hatch=hatch, edgecolor="white") for white, hatch in STAGES.values()]
    panels.legend(figure, [*made, Patch(facecolor=REST[0])], ["image", "text", "detector", "all else"], 4)


def _legend(figure, axis, shown, experiments: set[str]) -> None:
    names = [name for name in BATCHING if name in experiments]
    handles, labels = [], []
    for seen in shown:
        for name in names:
            style = {"color": seen.color, "ms": 4, **_filling(seen, name)}
            handles.append(axis.plot([], [], seen.marker, ls="-", **style)[0])
            labels.append(BATCHING[name][0] if len(shown) == 1 else f"{seen.name}, {BATCHING[name][0]}")
    panels.legend(figure, handles, labels, 1 if len(shown) > 1 else 2)
