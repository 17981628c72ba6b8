"""The figures of limits and of scale: times beside their floors, growth with prompts or images, starting up.

Frames are as in `figures`: backend, perhaps precision, value, low, high.
"""

from sam3lab.study import panels
from sam3lab.study.numbers import digits
from sam3lab.study.style import STAGES, by_runtime, new, styled
from sam3lab.study.tables import NATIVE, scaled


@styled
def floors(total, stages):
    """How many times the floor of the machine each runtime takes: the whole pipeline, and each stage by itself.

    total: of the pipeline. stages: the same with the column stage, of image, text and detect.
    """
    from matplotlib.figure import Figure

    shown = by_runtime(total)
    upper, lower = 0.75 + 0.3 * len(shown), 0.95 + 0.3 * len(shown)
    figure = Figure(figsize=(new(1)[0].get_figwidth(), upper + lower), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[upper, lower])
    top, bottom = top.subplots(), bottom.subplots(1, len(STAGES), sharey=True)
    panels.dots(top, total, "×")
    panels.reference(top, 1)
    top.set_xlim(0, panels.reach(total))
    top.set_xlabel("times the floor (line: the floor)", loc="right")
    panels.title(top, "a", "Whole pipeline beside its floor")
    for stage, axis in zip(STAGES, bottom, strict=True):
        each = stages[stages["stage"] == stage]
        panels.rows(axis, [seen.short for seen, _ in shown])
        names = {seen.label: row for row, (seen, _) in enumerate(shown)}
        for seen, rows in by_runtime(each):
            panels.point(axis, names[seen.label], rows.iloc[0], seen.color, seen.marker, **seen.filling)
        panels.reference(axis, 1)
        axis.set_xlim(0, panels.reach(each) if len(each) else 1.1)
        axis.set_xlabel(panels.PARTS[stage].replace(" ", "\n"))
    panels.title(bottom[0], "b", "Each stage by itself, times its floor")
    return figure


@styled
def scaling(rate, call, over: str, words: tuple[str, str, str, str, str]):
    """How throughput and the time of a call change with the number of prompts or images in it, the column `over`.

    words: title and unit of the upper panel, then of the lower one, then what is counted.
    """
    figure, (top, bottom) = new(4.3, 2, sharex=True)
    for axis, frame, letter, title, unit in ((top, rate, "a", *words[:2]), (bottom, call, "b", *words[2:4])):
        panels.lines(axis, frame, over=over)
        axis.set_ylabel(unit)
        panels.title(axis, letter, title)
    bottom.set(xlabel=words[4], xticks=sorted(call[over].unique()))
    return figure


@styled
def startup(warm, cold, absolute: bool = True):
    """From the start of a process to its first result, with everything compiled before, and with nothing: in seconds, or,
    unless `absolute`, relative to native PyTorch's warm start.
    """
    native = warm.loc[warm["backend"] == NATIVE, "value"]
    if not absolute and len(native):
        warm, cold = (scaled(frame, 1 / native.iloc[0]) for frame in (warm, cold))
    shown = by_runtime(cold)
    figure, axis = new(0.85 + 0.34 * len(shown))
    panels.rows(axis, [seen.short for seen, _ in shown])
    before = {seen.label: rows.iloc[0] for seen, rows in by_runtime(warm)}
    for row, (seen, rows) in enumerate(shown):
        each, start = rows.iloc[0], before.get(seen.label)
        if start is not None:
            axis.plot([start["value"], each["value"]], [row, row], color=seen.color, zorder=1)
            axis.plot(start["value"], row, seen.marker, mfc="white", mec=seen.color, mew=1, zorder=2)
        panels.point(axis, row, each, seen.color, seen.marker)
        known = digits(each["value"]) if start is None else f"{digits(start['value'])} / {digits(each['value'])}"
        panels.value(axis, row, f"{known}{' s' if absolute else ''}")
    least = min(cold["value"].min(), warm["value"].min()) if len(warm) else cold["value"].min()
    panels.logarithmic(axis, least, panels.reach(cold))
    axis.set_xlabel(f"{'seconds' if absolute else 'native PyTorch, warm = 1'}, logarithmic", loc="right")
    panels.title(axis, "", "Start to first result: warm (open) and cold")
    return figure
