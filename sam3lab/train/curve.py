"""The learning curve: the loss and the validation metrics of a training log over its steps."""

from pathlib import Path

from sam3lab.study import style
from sam3lab.train import log
from sam3lab.train.losses import WEIGHTS

# Okabe and Ito's colours, as in the study's figures, and a line style each for print in grey.
LOSSES = (("loss", "the whole loss", "#000000", "-"), ("mask", "masks", "#0072B2", "--"))
LOSSES += (("class", "classes and presence", "#D55E00", ":"),)
METRICS = (
    ("cgf1", "cgF1 / 100", "#000000", "-"),
    ("pmf1", "pmF1", "#0072B2", "--"),
    ("il_mcc", "IL_MCC", "#D55E00", ":"),
)
METRICS += (("mask_iou", "mask IoU", "#009E73", "-."),)


@style.styled
def draw(path: Path):
    """A figure of the log at `path`: weighted losses above, validation metrics from 0 to 1 below."""
    rows = log.read(path)
    figure, (above, below) = style.new(3.6, rows=2, sharex=True)
    steps = [int(row["step"]) for row in rows]
    for name, label, colour, line in LOSSES:
        above.plot(steps, [_loss(row, name) for row in rows], line, color=colour, label=label)
    above.set(yscale="log", ylabel="training loss")
    scored = log.validations(rows)
    for name, label, colour, line in METRICS:
        scale = 100 if name == "cgf1" else 1
        values = [row[f"val_{name}"] / scale for row in scored]
        below.plot([row["step"] for row in scored], values, line, color=colour, label=label)
    below.set(ylim=(0, 1), xlabel="step", ylabel="validation")
    for axes in (above, below):
        axes.grid(axis="y", color=style.BAND)
        axes.locator_params(axis="x", nbins=4)
        axes.legend(loc="best")
    return figure


def _loss(row: dict[str, str], group: str) -> float:
    if group == "loss":
        return float(row["loss"])
    names = ("mask_focal", "mask_dice") if group == "mask" else ("class", "presence")
    return sum(WEIGHTS[name] * float(row[name]) for name in names)
