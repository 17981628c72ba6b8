"""The figures of the report: which runtime is best for which use, and how the article's figures compare with ours."""

from sam3lab.study import panels
from sam3lab.study.claims import CONTRADICTED, REPRODUCED
from sam3lab.study.judging import HOLDS
from sam3lab.study.style import BAND, by_runtime, new, styled

VERDICTS = {REPRODUCED: ("#0072B2", "o"), CONTRADICTED: ("#D55E00", "s")}


@styled
def answer(frame):
    """Each runtime beside the best one, use by use: a row a use, a marker a runtime, the best one's value at the right.

    frame: as answer.frame gives it.
    """
    uses, shown = list(dict.fromkeys(frame["use"])), by_runtime(frame)
    tall = 0.2 + 0.055 * len(shown)
    named = -(-len(shown) // panels.legend_columns([seen for seen, _ in shown]))
    figure, axis = new(0.75 + tall * len(uses) + 0.16 * named)
    panels.rows(axis, [_wrapped(use) for use in uses])
    for row in range(0, len(uses), 2):
        axis.axhspan(row - 0.5, row + 0.5, color=BAND, lw=0, zorder=-1)
    panels.reference(axis, 1)
    step = 0.76 / max(len(shown) - 1, 1)
    for place, (seen, rows) in enumerate(shown):
        for _, each in rows.iterrows():
            row = uses.index(each["use"]) + (place - (len(shown) - 1) / 2) * step
            panels.point(axis, row, each, seen.color, seen.marker, 3.5, **seen.filling)
    for row, use in enumerate(uses):
        panels.value(axis, row, frame.loc[frame["use"] == use, "best"].iloc[0])
    panels.logarithmic(axis, min(frame["low"].min(), 1), panels.reach(frame, 1))
    axis.set_xlabel("times the best, logarithmic (line: the best)", loc="right")
    panels.title(axis, "", "Each runtime beside the best (its value: right)")
    panels.marker_legend(figure, axis, [seen for seen, _ in shown])
    return figure


@styled
def claims(frame):
    """What was measured over the figure it is held against, a row a claim, a marker a reading, filled if that holds.

    frame: as judging.frame gives it. Behind each row is a band of the values that would be right.
    """
    import numpy as np

    names = list(dict.fromkeys(frame["claim"]))
    figure, axis = new(0.95 + 0.3 * len(names))
    panels.rows(axis, names)
    panels.reference(axis, 1)
    panels.logarithmic(axis, min(frame["low"].min(), frame["value"].min(), 1), panels.reach(frame, 1))
    ends = axis.get_xlim()
    for row, name in enumerate(names):
        rows = frame[frame["claim"] == name]
        band = np.clip(rows[["least", "most"]].iloc[0].astype(float), *ends)
        axis.fill_betweenx([row - 0.42, row + 0.42], *band, color=BAND, lw=0, zorder=-1)
        for place, (_, each) in zip(np.linspace(-0.3, 0.3, len(rows) + 2)[1:-1], rows.iterrows(), strict=True):
            color, marker = VERDICTS[each["verdict"]]
            inner = {} if each["state"] == HOLDS else {"mfc": "white"}
            panels.point(axis, row + place, each, color, marker, 3.5, **inner)
    axis.set_xlabel("measured here / the figure tested, logarithmic", loc="right")
    panels.title(axis, "", "The article's claims that could be tested")
    known = [name for name in VERDICTS if name in set(frame["verdict"])]
    handles = [axis.plot([], [], VERDICTS[name][1], color=VERDICTS[name][0], ms=4)[0] for name in known]
    panels.legend(figure, handles, known, 2)
    return figure


def _wrapped(text: str) -> str:
    """On two lines where it has a comma, or is long."""
    if ", " in text:
        return text.replace(", ", ",\n", 1)
    words = text.split()
    return text if len(text) < 16 else " ".join(words[: len(words) // 2]) + "\n" + " ".join(words[len(words) // 2 :])
