"""The look of the figures: one for each runtime, the same bytes every time, legible in a column."""

import itertools

import pandas as pd
import pytest

from sam3lab import backends
from sam3lab.bench.statistics import Estimate
from sam3lab.study import figures, limit_figures, panels, style, verdict_figures

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
        scores = pairs.assign(value=91.0, low=88.0, high=94.0)
        return figures.precision(pairs, scores, [groups[1]], absolute)
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
        ids = [("L2", "reproduced", True), ("L4", "contradicted", False), ("L4", "contradicted", False)]
        return verdict_figures.claims(frame(["id", "verdict", "holds"], ids, 0.9), 0.1)
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


def test_accuracy_against_latency_names_what_it_shows_and_fades_what_failed():
    figure = draw("precision")
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    half = len(names) // 2  # a column of runtimes and one of precisions, the shorter one filled up
    runtimes, precisions = ([name for name in column if name] for column in (names[:half], names[half:]))
    assert runtimes == [style.look(runtime).label for runtime in style.ordered(RUNTIMES)]
    assert precisions == ["fp32", "tf32", "bf16", "failed (faded)"]
    points = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 1 and line.get_marker() != "None"]
    assert sorted(line.get_alpha() for line in points)[:2] == [0.4, 1.0]


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
