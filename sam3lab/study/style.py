"""The one style of every figure: sizes, fonts, a fixed colour and marker for each runtime, and how a figure is saved."""

import functools
import io
import os
from dataclasses import dataclass, replace
from pathlib import Path

COLUMN = 85 / 25.4  # inches: one column of a journal page, the width every figure must be legible at
INK = "#1a1a1a"
MUTED = "#6b6b6b"
BAND = "#f2f2f2"


@dataclass(frozen=True)
class Look:
    """How one runtime appears everywhere: its name in words, its colour and its marker.

    precision: named, and shown by which part of the marker is filled, where several are compared; else empty.
    """

    name: str
    color: str
    marker: str
    precision: str = ""

    @property
    def label(self) -> str:
        return f"{self.name} {self.precision}".rstrip()

    @property
    def short(self) -> str:
        """The label on two lines where it has a part in parentheses, or a precision."""
        if " (" in self.name or not self.precision:
            return self.label.replace(" (", "\n(")
        return f"{self.name}\n{self.precision}"

    @property
    def filling(self) -> dict:
        """matplotlib's arguments for the marker's filling; none where no precision is told apart."""
        if not self.precision:
            return {}
        fill = FILLS[self.precision]
        inner = {"mfc": "white"} if fill == "none" else {"fillstyle": fill}
        return {"markerfacecoloralt": "white", "mec": self.color, "mew": 0.9, **inner}

    def tint(self, white: float) -> tuple[float, ...]:
        """The colour with that share of white mixed in, as RGB."""
        from matplotlib.colors import to_rgb

        return tuple(channel + (1 - channel) * white for channel in to_rgb(self.color))


# Colours: Okabe and Ito, "Color Universal Design" (2008), told apart under every common colour-vision deficiency.
# The marker says the same again, for print in grey. The reference is black.
RUNTIMES = {
    "transformers": Look("PyTorch (transformers)", "#000000", "o"),
    "pytorch": Look("PyTorch (lean)", "#E69F00", "s"),
    "pytorch-compiled": Look("PyTorch (compiled)", "#CC79A7", "D"),
    "onnxruntime": Look("ONNX Runtime", "#0072B2", "^"),
    "tensorrt": Look("TensorRT", "#009E73", "P"),
    "openvino": Look("OpenVINO", "#D55E00", "v"),
    "meta": Look("SAM 3 (Meta)", "#56B4E9", "<"),
    # Okabe and Ito's yellow, darkened: as it is, it cannot be seen on white
    "meta-compiled": Look("SAM 3 (Meta, compiled)", "#8F8700", ">"),
}
# What only tables name.
_NAMES = {f"onnxruntime-{level}": f"ONNX Runtime ({level})" for level in ("unoptimised", "basic", "extended")}
# Precisions are told apart by which part of a runtime's marker is filled (matplotlib's names).
FILLS = {"fp32": "full", "tf32": "right", "bf16": "left", "fp16": "bottom", "int8": "none", "fp8": "top"}
# Stages are told apart within a runtime's own colour: (share of white mixed in, hatching).
STAGES = {"image": (0.0, ""), "text": (0.45, "xxxxxx"), "detect": (0.72, "")}

RC = {
    "figure.dpi": 200,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",  # the one font that matplotlib itself carries: the same bytes on every machine
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.5,
    "hatch.linewidth": 0.5,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "text.color": INK,
    "svg.fonttype": "path",  # text as outlines: looks the same where DejaVu Sans is absent
    "svg.hashsalt": "sam3lab",
    "path.simplify": False,
}


def look(runtime: str, precision: str = "") -> Look:
    """The runtime's look; one that is not in the table (a test's, a user's own) is grey under its own name."""
    return replace(RUNTIMES.get(runtime, Look(_NAMES.get(runtime, runtime), "#7f7f7f", "X")), precision=precision)


def ordered(runtimes) -> list[str]:
    """The distinct `runtimes` in the fixed order of the table, others after them by name."""
    known = list(RUNTIMES)
    return sorted(set(runtimes), key=lambda name: (known.index(name) if name in known else len(known), name))


def looks(groups) -> dict[tuple[str, str], Look]:
    """{(backend, precision): look} in the order in which they are shown: runtimes as in the table, then precisions.

    The precision is named only where there are several among the groups.
    """
    groups = set(groups)
    several = len({precision for _, precision in groups}) > 1
    fixed = [*FILLS, ""]
    known = {name: place for place, name in enumerate(ordered(backend for backend, _ in groups))}
    order = sorted(groups, key=lambda group: (known[group[0]], fixed.index(group[1])))
    return {group: look(group[0], group[1] if several else "") for group in order}


def by_runtime(frame) -> list[tuple[Look, object]]:
    """(look, rows) of each runtime in a frame with the column backend, and of each precision where it has that column,
    in the order in which they are shown.
    """
    precisions = frame["precision"] if "precision" in frame else [""] * len(frame)
    keys = list(zip(frame["backend"], precisions, strict=True))
    return [(seen, frame[[key == group for key in keys]]) for group, seen in looks(keys).items()]


def styled(draw):
    """Decorator of a function that draws: it runs, and makes its artists, in this style; nothing outside is changed.

    Where an interval runs off its axes, an arrowhead at their edge tells so.
    """

    @functools.wraps(draw)
    def wrapper(*args, **kwargs):
        import matplotlib

        with matplotlib.rc_context(RC):
            figure = draw(*args, **kwargs)
            _mark_cut(figure)
            return figure

    return wrapper


def _mark_cut(figure) -> None:
    from matplotlib.container import ErrorbarContainer

    for axis in figure.axes:
        limits = axis.get_xlim(), axis.get_ylim()
        for bars in (bars for each in axis.containers if isinstance(each, ErrorbarContainer) for bars in each[2]):
            how = {"color": bars.get_color()[0], "alpha": bars.get_alpha(), "ms": 3.5, "clip_on": False}
            for ends in bars.get_segments():
                if not len(ends):  # no interval
                    continue
                upright = int(ends[0][0] == ends[1][0])
                low, high = sorted(limits[upright])
                for end, edge, off, marker in (
                    (ends[0], low, ends[0][upright] < low, "<v"[upright]),
                    (ends[1], high, ends[1][upright] > high, ">^"[upright]),
                ):
                    if off:
                        axis.autoscale(False)
                        axis.plot(*((end[0], edge) if upright else (edge, end[1])), marker, **how)


def new(height: float, rows: int = 1, columns: int = 1, **subplots):
    """(figure, axes): one column wide and `height` inches high; further arguments are those of Figure.subplots.

    The figure belongs to no pyplot state: nothing shows it twice in a notebook, and nothing keeps it alive.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(COLUMN, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **subplots)


def save(figure, directory: str | os.PathLike, name: str) -> tuple[Path, Path]:
    """Write `name`.svg and `name`.png (300 dpi) below `directory`; the same figure always gives the same bytes."""
    import matplotlib

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for suffix, metadata in (("svg", {"Date": None, "Creator": None}), ("png", {"Software": None})):
        buffer = io.BytesIO()
        with matplotlib.rc_context(RC):
            figure.savefig(buffer, format=suffix, dpi=300, metadata=metadata)
        path = directory / f"{name}.{suffix}"
        path.write_bytes(buffer.getvalue())
        written.append(path)
    return tuple(written)
