"""The look of the figures: one for each runtime, the same bytes every time, legible in a column."""

import itertools

import pandas as pd
import pytest

from sam3lab import backends
from sam3lab.bench.statistics import Estimate
from sam3lab.study import claims, figures, limit_figures, panels, style, verdict_figures

RUNTIMES = list(style.RUNTIMES)
SIDES = [126, 252, 378]
# as on a GPU: native PyTorch in fp32 too, the others in fp16, Meta's in bf16
ROWS = [("transformers", "fp32"), *((name, "bf16" if name.startswith("meta") else "fp16") for name in RUNTIMES)]


def frame(columns, groups, start=1.0):
    rows = [(*group, start * (1 + 0.1 * index)) for index, group in enumerate(groups)]
    made = pd.DataFrame(rows, columns=[*columns, "value"])
    return made.assign(low=made["value"] * 0.95, high=made["value"] * 1.07)


def draw(name, absolute=False):
    """A figure, with rows of several precisions where it is absolute, as those of a GPU are."""
    rows, by = (ROWS, ["backend", "precision"]) if absolute else ([(each,) for each in RUNTIMES], ["backend"])

    def made(extra="", values=(None,), start=1.0, rows=rows):
        groups = [(*row, *([value] if extra else [])) for row in rows for value in values]
        return frame([*by, *([extra] if extra else [])], groups, start)

    each, few, stages = made(start=0.2), rows[:4], made("stage", style.STAGES, 0.1)
    if name == "machine":
        return figures.machine(Estimate(0.1, 0.05, 0.4), made(start=20.0))
    if name == "runtimes":
        return figures.runtimes(each, stages, absolute)
    if name == "resolution":
        return figures.resolution(*[made("resolution", SIDES, 0.3, few)] * 2, absolute)
    if name == "prompts":
        groups = [
            (*row, condition, stage) for row in few for condition in figures.CONDITIONS for stage in figures.PANELS
        ]
        return figures.prompts(frame([*by, "condition", "stage"], groups, 0.1))
    if name == "precision":
        groups = [
            (runtime, each) for runtime in RUNTIMES for each in list(style.FILLS)[: 1 + RUNTIMES.index(runtime) % 3]
        ]
        pairs = frame(["backend", "precision"], groups, 0.2)
        scores, changes = pairs.assign(value=91.0, low=88.0, high=94.0), pairs[1:].assign(value=1e-3)
        return figures.precision(pairs, scores, changes.assign(low=float("nan")), 0.01, [groups[1]], absolute)
    if name == "floors":
        return limit_figures.floors(made(start=1.5), stages)
    if name == "scaling":
        words = ("Throughput", "images/s", "Time of a call", "ms", "images in a call")
        return limit_figures.scaling(*[made("batch", (1, 4, 8), rows=few)] * 2, "batch", words)
    if name == "startup":
        return limit_figures.startup(each, made(start=90.0))
    if name == "answer":
        uses = ("One image, one prompt", "Many images, 8 at most a call", "Quickest first start, nothing compiled")
        return verdict_figures.answer(made("use", uses).assign(best="601 images/s"))
    if name == "claims":
        rows = [(claim.short, "reproduced", "holds", 0.9, 1.1) for claim in claims.load() if claim.metric == "speedup"]
        rows += [("R1 PyTorch\ntime at 512", "contradicted", "fails", 1.0, float("inf"))] * 6
        return verdict_figures.claims(frame(["claim", "verdict", "state", "least", "most"], rows, 0.9))
    return figures.memory(made().assign(value=900.0), made("resolution", SIDES, 1400.0, few), 252)


FIGURES = ["machine", "runtimes", "resolution", "prompts", "memory", "precision"]
FIGURES += ["floors", "scaling", "startup", "answer", "claims"]


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_drawn_again_has_the_same_bytes(name, tmp_path):
    first, second = (style.save(draw(name), tmp_path / place, name) for place in ("a", "b"))
    assert [path.suffix for path in first] == [".svg", ".png"]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert b"<dc:date>" not in first[0].read_bytes()


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_a_column_wide_and_its_text_is_legible_and_inside(name, absolute):
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    figure = draw(name, absolute)
    assert figure.get_figwidth() == pytest.approx(85 / 25.4)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    width, height = canvas.get_width_height()
    whole = figure.get_tightbbox(canvas.get_renderer())  # of all that is drawn, titles apart, in inches
    boxes = [whole.transformed(figure.dpi_scale_trans)]
    boxes += [text.get_window_extent() for axis in figure.findobj(Axes) for text in axis.texts]
    for box in boxes:
        assert box.x0 >= -1 and box.x1 <= width + 1 and box.y0 >= -1 and box.y1 <= height + 1
    assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text().strip()) >= 8


def test_every_runtime_has_a_colour_and_a_marker_of_its_own():
    looks = list(style.RUNTIMES.values())
    for field in ("label", "color", "marker"):
        assert len({getattr(look, field) for look in looks}) == len(looks)
    assert set(backends.names()) <= set(style.RUNTIMES)


def test_drawing_leaves_matplotlibs_settings_alone():
    import matplotlib

    before = dict(matplotlib.rcParams)
    draw("runtimes")
    assert dict(matplotlib.rcParams) == before


def test_accuracy_beside_latency_has_a_named_row_for_each_and_fades_what_failed():
    figure = draw("precision")
    names = [text.get_text().replace("\n", " ") for text in figure.axes[0].get_yticklabels()]
    groups = [(name, each) for place, name in enumerate(RUNTIMES) for each in list(style.FILLS)[: 1 + place % 3]]
    assert names == [look.label for look in style.looks(groups).values()]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["failed in tensors or detections"]
    for axis, count in zip(figure.axes, (len(groups), len(groups), len(groups) - 1), strict=True):
        points = [bars[0] for bars in axis.containers]
        places = {point.get_ydata().item(): point.get_alpha() for point in points}
        assert len(places) == len(points) == count  # no point hides another
        assert [row for row, alpha in places.items() if alpha == 0.4] == [names.index("PyTorch (lean) fp32")]


def heads(axis):
    """The arrowheads of an axis: (marker, x, y)."""
    lines = [line for line in axis.lines if not line.get_clip_on() and line.get_marker() in "<>^v"]
    return [(line.get_marker(), *line.get_xdata(), *line.get_ydata()) for line in lines]


def test_an_interval_that_runs_off_its_axis_ends_in_an_arrowhead():
    rows = [
        ("transformers", 1.0, 0.1, 9.0),
        ("onnxruntime", 0.5, 0.4, 0.6),
        ("openvino", 0.6, float("nan"), float("nan")),
    ]
    total = pd.DataFrame(rows, columns=["backend", "value", "low", "high"])
    top = figures.runtimes(total, total.assign(stage="image")).axes[0]
    assert heads(top) == [(">", top.get_xlim()[1], 0)]
    growth = pd.concat([total.assign(resolution=side) for side in SIDES], ignore_index=True)
    upper = figures.resolution(growth, growth).axes[0]
    assert heads(upper) == [("^", side, upper.get_ylim()[1]) for side in SIDES]
    held = ("machine", "runtimes", "resolution", "prompts", "memory", "floors", "scaling", "startup")
    assert not any(heads(axis) for name in held for axis in draw(name).axes)


def test_where_no_interval_is_known_a_value_has_its_marker_alone():
    rows = [("transformers", 1.0, 0.9, 1.2), ("onnxruntime", 0.5, float("nan"), float("nan"))]
    total = pd.DataFrame(rows, columns=["backend", "value", "low", "high"])
    for axis in (
        figures.runtimes(total, total.assign(stage="image")).axes[0],
        figures.resolution(*[total.assign(resolution=252)] * 2).axes[0],
    ):
        whiskers = [each[2][0].get_segments()[0] for each in axis.containers]
        lengths = [float(abs(ends[0] - ends[1]).max()) if len(ends) else 0 for ends in whiskers]
        assert lengths[:2] == [pytest.approx(0.3), 0]
        assert axis.get_xlim()[1] < 1e3 and axis.get_ylim()[1] < 1e3


def test_a_marker_is_filled_for_its_precision_wherever_memory_is_shown():
    top, bottom = draw("memory", absolute=True).axes
    styles = [[line.get_fillstyle() for line in axis.lines if line.get_marker() == "o"] for axis in (top, bottom)]
    assert styles[0] == styles[1] == ["full", "bottom"]


def test_runtimes_keep_their_order_and_unknown_ones_come_last():
    assert style.ordered(["zeta", "openvino", "transformers", "alpha"]) == ["transformers", "openvino", "alpha", "zeta"]


@pytest.mark.parametrize("values", [[1.0, 1.01, 1.02, 5.0], [3.0, 2.0, 1.0], [1.0] * 5, [0.0, 0.1, 0.15, 0.9]])
def test_labels_at_line_ends_do_not_overlap_and_keep_their_order(values):
    heights = [0.2 + 0.1 * (index % 2) for index in range(len(values))]
    places = panels.spread(values, heights)
    order = sorted(range(len(values)), key=places.__getitem__)
    assert [values[index] for index in order] == sorted(values)
    for below, above in itertools.pairwise(order):
        assert places[above] - places[below] >= (heights[above] + heights[below]) / 2 - 1e-9


def test_a_precision_is_named_only_where_several_are_compared():
    one = style.looks([("onnxruntime", "fp32"), ("transformers", "fp32")])
    assert [look.label for look in one.values()] == ["PyTorch (transformers)", "ONNX Runtime"]
    several = style.looks([("onnxruntime", "fp16"), ("transformers", "fp32"), ("transformers", "fp16")])
    assert [look.label for look in several.values()] == [
        "PyTorch (transformers) fp32",
        "PyTorch (transformers) fp16",
        "ONNX Runtime fp16",
    ]
    assert several["onnxruntime", "fp16"].short == "ONNX Runtime\nfp16"
    assert not one["onnxruntime", "fp32"].filling and several["onnxruntime", "fp16"].filling["fillstyle"] == "bottom"


def test_the_darkened_yellow_can_be_seen_on_white():
    """With at least the contrast that WCAG 2.1 asks of what is no text, 3:1."""
    from matplotlib.colors import to_rgb

    color = to_rgb(style.look("meta-compiled").color)
    linear = [channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4 for channel in color]
    luminance = sum(weight * channel for weight, channel in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    assert 1.05 / (luminance + 0.05) >= 3
