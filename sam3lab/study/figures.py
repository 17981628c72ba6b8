"""The figures that compare runtimes: each takes tidy frames and returns a matplotlib figure.

Frames have the columns value, low, high (95% interval) and backend, and also precision where rows differ in it; rows are
then named and filled by it.
"""

from dataclasses import replace

from sam3lab.study import panels
from sam3lab.study.numbers import digits
from sam3lab.study.style import BAND, INK, MUTED, STAGES, Look, by_runtime, new, styled

GREY = Look("", "#7f7f7f", "o")  # stands for any runtime in a legend
PANELS = {
    "pipeline": "Whole pipeline",
    "text": "Text stage alone",
    "detect": "Detector alone",
    "pipeline_cached": "Pipeline, text features cached",
}
CONDITIONS = {
    "word": "one word",
    "description": "a description",
    "phrase": "objects, one phrase",
    "several": "objects, a prompt each",
}


@styled
def machine(overhead, fractions, products: str = "PyTorch's matrix products"):
    """What the harness costs, and how near the runtimes come to the machine's rate of matrix products.

    overhead: an estimate in % of a call. fractions: backend, value, low, high in % of the ceiling, which is the rate of
    `products`.
    """
    rows = 0.32 * len(fractions)
    figure, (top, bottom) = new(1.5 + rows, 2, height_ratios=[0.26, rows])
    panels.rows(top, ["the harness"])
    panels.point(top, 0, {end: getattr(overhead, end) for end in ("value", "low", "high")}, INK, "o")
    panels.value(top, 0, f"{digits(overhead.value, 2)}%")
    top.set_xlim(min(0, overhead.low * 1.3), max(2.2, overhead.high * 1.1))
    panels.reference(top, 2, panels.DASHED)
    top.set_xlabel("% of a call of known length (dashed: the limit)", loc="right")
    panels.title(top, "a", "Cost of measuring")
    panels.dots(bottom, fractions, "%")
    bottom.set_xlim(0, panels.reach(fractions))
    bottom.set_xlabel(f"% of the rate of {products}", loc="right")
    panels.title(bottom, "b", "Rate of arithmetic in the whole pipeline")
    return figure


@styled
def runtimes(total, stages, absolute: bool = False):
    """Latency of each runtime and what it is made of.

    total: backend, value, low, high of the pipeline. stages: backend, stage, value. Both relative to the pipeline of
    native PyTorch, or in ms where `absolute`.
    """
    shown = by_runtime(stages)
    figure, (top, bottom) = new(1.2 + 0.56 * len(shown), 2, sharex=True)
    panels.dots(top, total, significant=3 if absolute else None)
    if not absolute:
        panels.reference(top, 1)
    panels.title(top, "a", "Pipeline, pixels to raw detections")
    panels.rows(bottom, [seen.short for seen, _ in shown])
    widest = 0.0
    for row, (seen, each) in enumerate(shown):
        part, left = each.set_index("stage")["value"], 0.0
        for stage, (white, hatch) in STAGES.items():
            width = part.get(stage, 0.0)
            bottom.barh(row, width, 0.62, left, color=seen.tint(white), hatch=hatch, edgecolor="white", lw=0.6)
            left += width
        widest = max(widest, left)
    bottom.set_xlim(0, panels.reach(total, widest))
    bottom.set_xlabel("latency, ms" if absolute else "latency relative to PyTorch (transformers)", loc="right")
    panels.title(bottom, "b", "Each stage by itself")
    panels.stage_legend(figure)
    return figure


@styled
def resolution(relative, growth, absolute: bool = False):
    """How latency, and its ratio to native PyTorch, change with the image's side.

    relative: backend, resolution, value, low, high against native PyTorch at the same resolution (ms if `absolute`).
    growth: the same against the runtime's own smallest resolution.
    """
    figure, (top, bottom) = new(4.3, 2, sharex=True)
    sides = sorted(growth["resolution"].unique())
    panels.lines(top, relative)
    top.set_ylabel("ms" if absolute else "relative to PyTorch\n(transformers)")
    panels.title(top, "a", "Latency" if absolute else "Latency against native PyTorch at the same size")
    panels.lines(bottom, growth, least=(sides[-1] / sides[0]) ** 2)
    bottom.plot(sides, [(side / sides[0]) ** 2 for side in sides], color=MUTED, lw=0.8, ls=panels.DASHED, zorder=1)
    bottom.set(ylabel="relative to its own\nat the smallest size", xlabel="side of the image, pixels", xticks=sides)
    panels.title(bottom, "b", "Growth with size (dashed: number of pixels)")
    return figure


@styled
def prompts(frame):
    """What a prompt costs, by kind: the pipeline, its prompt-dependent stages, and the pipeline with cached text.

    frame: backend, condition (of CONDITIONS), stage, value, low, high relative to the same runtime's pipeline with a word.
    """
    conditions, shown = [each for each in CONDITIONS if each in set(frame["condition"])], by_runtime(frame)
    stages = [stage for stage in PANELS if stage in set(frame["stage"])]
    figure, axes = new(0.8 + (0.3 + 0.23 * len(conditions)) * len(stages), len(stages), sharex=True, squeeze=False)
    step = 0.66 / max(len(shown) - 1, 1)
    owner = {index: (place, seen) for place, (seen, rows) in enumerate(shown) for index in rows.index}
    for letter, stage, axis in zip("abcd", stages, axes[:, 0], strict=False):
        panels.rows(axis, [CONDITIONS[each] for each in conditions])
        for row in range(0, len(conditions), 2):
            axis.axhspan(row - 0.5, row + 0.5, color=BAND, lw=0, zorder=-1)
        panels.reference(axis, 1)
        for index, each in frame[frame["stage"] == stage].iterrows():
            place, seen = owner[index]
            row = conditions.index(each["condition"]) + (place - (len(shown) - 1) / 2) * step
            panels.point(axis, row, each, seen.color, seen.marker, 3, **seen.filling)
        panels.title(axis, letter, PANELS[stage])
    axes[-1, 0].set_xlim(0, panels.reach(frame))
    axes[-1, 0].set_xlabel("relative to the same runtime's\npipeline with one word")
    panels.marker_legend(figure, axes[0, 0], [seen for seen, _ in shown])
    return figure


@styled
def memory(loaded, peak, side: int):
    """Memory of each runtime: after loading and at its peak at one resolution, and the peak at every resolution.

    loaded: backend, value in MB. peak: backend, resolution, value, low, high in MB. side: the upper panel's resolution.
    """
    from matplotlib.figure import Figure

    scale, unit = (1000, "GB") if peak["value"].max() >= 2000 else (1, "MB")
    peak = peak.assign(**{name: peak[name] / scale for name in ("value", "low", "high")})
    keys = [name for name in ("backend", "precision") if name in peak]
    here = peak[peak["resolution"] == side].merge(loaded[[*keys, "value"]], "left", keys, suffixes=("", "_loaded"))
    shown = by_runtime(here)
    upper, lower = 0.75 + 0.3 * len(shown), 2.2
    figure = Figure(figsize=(new(1)[0].get_figwidth(), upper + lower), layout="constrained")
    top, bottom = (part.subplots() for part in figure.subfigures(2, 1, height_ratios=[upper, lower]))
    panels.rows(top, [seen.short for seen, _ in shown])
    for row, (seen, each) in enumerate(shown):
        each = each.iloc[0]
        value, start = each["value"], each["value_loaded"] / scale
        top.plot([start, value], [row, row], color=seen.color, zorder=1)
        top.plot(start, row, "|", color=seen.color, ms=8, mew=1.4, zorder=1)
        panels.point(top, row, each, seen.color, seen.marker, **seen.filling)
        panels.value(top, row, f"{digits(value)} {unit}")
    top.set_xlim(0, panels.reach(here))
    top.set_xlabel(unit)
    panels.title(top, "a", f"After loading (bar) and at its peak, {side} pixels")
    panels.lines(bottom, peak)
    bottom.set(ylabel=unit, xlabel="side of the image, pixels", xticks=sorted(peak["resolution"].unique()))
    panels.title(bottom, "b", "Peak by size of the image")
    return figure


@styled
def precision(latency, score, change, limit: float, failed=(), absolute: bool = False):
    """Latency, accuracy, and the greatest change of a score from the reference's: a row a runtime and precision.

    latency: relative to native PyTorch in fp32, or in ms where `absolute`. score: cgF1. change: in 0..1, of which more
    than `limit` fails. failed: the (backend, precision) that are faded. What lacks latency or score is left out.
    """
    from matplotlib.ticker import LogLocator

    keys = ["backend", "precision"]
    both = latency.merge(score[keys], on=keys)
    shown = [(seen, tuple(each.iloc[0][keys])) for seen, each in by_runtime(both)]
    figure, axes = new(0.9 + 0.3 * len(shown), 1, 3)
    for axis, frame in zip(axes, (both, score, change), strict=True):
        panels.rows(axis, [seen.short if axis is axes[0] else "" for seen, _ in shown])
        values = {tuple(each[keys]): each for _, each in frame.iterrows()}
        for row, (seen, group) in enumerate(shown):
            if group in values:
                alpha = 0.4 if group in failed else 1.0
                panels.point(axis, row, values[group], seen.color, seen.marker, alpha=alpha, **seen.filling)
    low, high = both["value"].min() / 1.15, both["value"].max() * 1.15
    panels.logarithmic(axes[0], low, high)
    axes[0].xaxis.set_major_locator(LogLocator(subs=(1, 3) if high < 20 * low else (1,)))  # the panel is narrow
    axes[0].set_xlabel("latency, ms" if absolute else "relative\nlatency")
    for value in score.loc[(score["backend"] == "transformers") & (score["precision"] == "fp32"), "value"]:
        panels.reference(axes[1], value)
    axes[1].set_xlabel("cgF1")
    axes[2].set(xscale="log", xlim=(1e-7, 4), xlabel="change of\na score")  # from float32's rounding to the whole score
    axes[2].set_xticks([1e-6, limit], ["10⁻⁶", f"{limit:g}"])
    axes[2].minorticks_off()
    panels.reference(axes[2], limit, panels.DASHED)
    if any(group in failed for _, group in shown):
        grey = panels.marker(axes[0], replace(GREY, precision="fp32"), 0.4)
        panels.legend(figure, [grey], ["failed in tensors or detections"], 1)
    return figure
