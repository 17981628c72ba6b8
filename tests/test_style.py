"""The look of the figures: one for each runtime, the same bytes every time, legible in a column."""

import itertools

import pandas as pd
import pytest

from sam3lab import backends
from sam3lab.bench.statistics import Estimate
from sam3lab.study import figures, panels, style

RUNTIMES = list(style.RUNTIMES)
SIDES = [126, 252, 378]


def frame(columns, groups, start=1.0):
    rows = [(*group, start * (1 + 0.1 * index)) for index, group in enumerate(groups)]
    made = pd.DataFrame(rows, columns=[*columns, "value"])
    return made.assign(low=made["value"] * 0.95, high=made["value"] * 1.07)


def draw(name, absolute=False):
    each, sized = frame(["backend"], [(name,) for name in RUNTIMES], 0.2), list(itertools.product(RUNTIMES, SIDES))
    stages = frame(["backend", "stage"], itertools.product(RUNTIMES, style.STAGES), 0.1)
    if name == "machine":
        return figures.machine(
            Estimate(0.1, 0.05, 0.4), each.assign(**{end: each[end] * 100 for end in ("value", "low", "high")})
        )
    if name == "runtimes":
        return figures.runtimes(each, stages, absolute)
    if name == "resolution":
        return figures.resolution(*[frame(["backend", "resolution"], sized, 0.3)] * 2, absolute)
    if name == "prompts":
        groups = itertools.product(RUNTIMES[:3], figures.CONDITIONS, figures.PANELS)
        return figures.prompts(frame(["backend", "condition", "stage"], groups, 0.1))
    if name == "precision":
        groups = [
            (runtime, each) for runtime in RUNTIMES for each in list(style.FILLS)[: 1 + RUNTIMES.index(runtime) % 3]
        ]
        pairs = frame(["backend", "precision"], groups, 0.2)
        scores = pairs.assign(value=91.0, low=88.0, high=94.0)
        return figures.precision(pairs, scores, [groups[1]], absolute)
    return figures.memory(each.assign(value=900.0), frame(["backend", "resolution"], sized, 1400.0), 252)


FIGURES = ["machine", "runtimes", "resolution", "prompts", "memory", "precision"]


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


def test_names_of_points_stand_apart_and_failed_ones_say_so():
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = draw("precision")
    FigureCanvasAgg(figure).draw()
    texts = [text for text in figure.axes[0].texts if text.get_text()]
    boxes = [text.get_window_extent() for text in texts]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert sum("(failed)" in text.get_text() for text in texts) == 1


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
