"""Optimisation profiles: the sizes of the open axes that an engine takes, and those that it is fastest at.

The graphs leave open how many images, prompts and image–prompt pairs a call has; the resolution is fixed in a graph, so
that three resolutions are three sets of graphs and engines.
"""

import re

from sam3lab.errors import UserError
from sam3lab.export.onnx import INPUTS
from sam3lab.model.config import CONTEXT, PATCH

Profile = dict[str, tuple[int, int, int]]  # an axis to its least, usual and greatest size

AXES = ("images", "prompts", "pairs")
PROFILES: tuple[Profile, ...] = (
    {axis: (1, 1, 1) for axis in AXES},  # one image, one prompt: every kernel made for it
    {"images": (1, 4, 8), "prompts": (1, 4, 16), "pairs": (1, 8, 16)},
)
_AXIS = {name: axis for inputs in INPUTS.values() for name, axis in inputs.items()}


def check(profile: Profile) -> Profile:
    """The profile itself; UserError naming the axis where its sizes are not 1 ≤ least ≤ usual ≤ greatest."""
    for axis, (least, usual, greatest) in profile.items():
        if not 1 <= least <= usual <= greatest:
            raise UserError(
                f"{axis} cannot go from {least} to {greatest} with {usual} as the usual size: "
                "the least must be at least 1, and the usual one between it and the greatest"
            )
    return profile


def parse(minimum: str | None, optimum: str | None, maximum: str | None, resolution: int) -> tuple[Profile, ...]:
    """The profile that trtexec's --minShapes, --optShapes and --maxShapes describe; PROFILES where all are None.

    Each is a list like `pixels:4x3x1008x1008,ids:2x32`, or by axis, `images:4,prompts:2,pairs:8`. As with trtexec,
    --optShapes stands in for an absent one of the others. An axis that is not named keeps to one. Raises UserError for a
    name or shape that the graphs at `resolution` do not have.
    """
    if minimum is maximum is optimum is None:
        return PROFILES
    if optimum is None:
        raise UserError("--minShapes and --maxShapes need --optShapes beside them: the sizes to be fastest at")
    usual = _sizes("--optShapes", optimum, resolution)
    least, greatest = (
        _sizes(flag, text, resolution) if text is not None else usual
        for flag, text in (("--minShapes", minimum), ("--maxShapes", maximum))
    )
    named = [axis for axis in AXES if axis in {*least, *usual, *greatest}]
    for flag, sizes in (("--minShapes", least), ("--optShapes", usual), ("--maxShapes", greatest)):
        absent = [axis for axis in named if axis not in sizes]
        if absent:
            raise UserError(f"{flag} says nothing of {absent[0]}, which another one names: give {absent[0]} there too")
    profile = {axis: (least[axis], usual[axis], greatest[axis]) if axis in named else (1, 1, 1) for axis in AXES}
    return (check(profile),)


def choose(profiles: list[Profile], sizes: dict[str, int]) -> int:
    """The index of the first profile that takes these sizes of axes. Raises UserError with what is taken where none does."""
    for index, profile in enumerate(profiles):
        if all(profile[axis][0] <= size <= profile[axis][2] for axis, size in sizes.items()):
            return index
    asked = ", ".join(f"{size} {axis}" for axis, size in sizes.items())
    taken = "; ".join(", ".join(f"{p[axis][0]}–{p[axis][2]} {axis}" for axis in sizes) for p in profiles)
    raise UserError(
        f"the engines take {taken}, not {asked}: give them less at a time, or, from Python, name engines of "
        "`sam3lab build-engine --maxShapes` as backends.Artifacts.graphs"
    )


def _sizes(flag: str, text: str, resolution: int) -> dict[str, int]:
    """Axis to size of one flag's value."""
    sizes: dict[str, int] = {}
    for part in text.split(","):
        found = re.fullmatch(r"'?(\w+)'?:(\d+(?:x\d+)*)", part.strip())
        if not found:
            raise UserError(f"{flag} {part!r} is no shape: write pixels:4x3x{resolution}x{resolution}, or images:4")
        name, (rows, *rest) = found[1], map(int, found[2].split("x"))
        axis = name if name in AXES else _AXIS.get(name)
        if axis is None:
            raise UserError(f"{flag} names {name!r}; the inputs are {', '.join(_AXIS)}, the axes {', '.join(AXES)}")
        wanted = () if name in AXES else _rest(name, resolution)
        if len(rest) != len(wanted) or any(size not in (given, None) for given, size in zip(rest, wanted, strict=True)):
            shape = "x".join(["N", *("C" if size is None else str(size) for size in wanted)])
            raise UserError(f"{flag} {part!r}: {name} is {shape} at resolution {resolution}; only N is open")
        if sizes.setdefault(axis, rows) != rows:
            raise UserError(f"{flag} gives {axis} both as {sizes[axis]} and as {rows}")
    return sizes


def _rest(name: str, resolution: int) -> tuple[int | None, ...]:
    """An input's shape after its first axis; None for the width of the features, which is the checkpoint's."""
    if name == "pixels":
        return 3, resolution, resolution
    if name in ("ids", "mask"):
        return (CONTEXT,)
    if name == "text_features":
        return CONTEXT, None
    if name.startswith("features_"):
        side = int(name[len("features_")]) * (resolution // PATCH)
        return None, side, side
    return ()
