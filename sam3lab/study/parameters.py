"""The parameters of the notebooks: their names, their types, and the refusal of what is misspelt or out of range."""

import ast
import difflib
import math

from sam3lab.bench.case import PRECISIONS
from sam3lab.errors import UserError
from sam3lab.model.config import PATCH

# Every parameter that a notebook may have: the type of its value, or of the items of its list, and what it means. "The
# device's default" is what sam3lab.study.presets has for the notebook.
PARAMETERS = {
    "checkpoint": (str, "a checkpoint's name or directory, or empty for the device's default"),
    "backends": ([str], "the names of the runtimes, or none for the device's default"),
    "device": (str, "cpu, cuda, or empty for cuda where there is an NVIDIA GPU"),
    "precision": (str, "fp32, tf32, bf16, fp16, int8, fp8, or empty for the device's default"),
    "precisions": ([str], "fp32, tf32, bf16, fp16, int8, fp8, or none for the device's default"),
    "resolution": (int, "the side of the image in pixels, a multiple of 14, or 0 for the checkpoint's own"),
    "resolutions": ([int], "sides in pixels, or none for a half, one and one and a half of the checkpoint's own"),
    "image": (str, "a bundled photograph's name, or a file"),
    "prompt": (str, "one word"),
    "description": (str, "a phrase that describes one thing"),
    "objects": ([str], "words for several things"),
    "counts": ([int], "numbers of prompts in one call, at least 1 and at most as many words as are stored, or none"),
    "batches": ([int], "numbers of images in one call, at least 1, or none for the device's default"),
    "fallback": (str, "the runtime that serves on the CPU in need, none, or empty for the device's default"),
    "loads": ([float], "loads as shares of a service's capacity, more than 0, or none for the device's default"),
    "seconds": (float, "how long each load lasts, or 0 for the device's default"),
    "deadline": (float, "seconds in which an answer is in time, or 0 for the device's default"),
    "requests": (int, "how many requests of each kind are timed one by one, at least 1"),
    "huge": (str, "a larger checkpoint for native PyTorch alone, or empty for the device's default"),
    "accuracy": (bool, "True to score the cases on scenes, False not to"),
    "scenes": (int, "how many scenes of the test split are scored, or 0 for all"),
    "rounds": (int, "how many rounds each case is measured in, or 0 for the device's default"),
    "most_rounds": (int, "how many a case gets at most whose median is not sure to within 2%, or 0 for the default"),
    "min_samples": (int, "the least number of steady samples of a case and stage over all its rounds, at least 1"),
    "min_seconds": (float, "the least duration of a case and stage's steady samples over all its rounds, not negative"),
    "seed": (int, "a whole number, not negative"),
    "run": (str, "a folder below runs/, or empty for the notebook's name"),
    "results": (str, "a directory of stored results, also from the clone's root, or empty for the run's own"),
    "measure": (bool, "True to measure, False to render stored results"),
    "figures": (str, "a folder for the figures, or empty for the run's own"),
}
LEAST = {"resolution": 0, "scenes": 0, "rounds": 0, "most_rounds": 0, "min_samples": 1, "min_seconds": 0.0, "seed": 0}
LEAST |= {"seconds": 0.0, "deadline": 0.0, "requests": 1}
INJECTED = "# Parameters"  # how the cell that papermill injects begins
OURS = ("run", "results", "measure", "figures")  # where to read and write: a study sets these itself
NEEDED = ("image", "prompt", "description", "objects")
ALLOWED = {"device": ("", "cpu", "cuda"), "precision": ("", *PRECISIONS), "precisions": PRECISIONS}


def check_name(name: str, known, where: str) -> None:
    """UserError unless `name` is one of `known`; it names the nearest one, and all of them."""
    if name not in known:
        near = difflib.get_close_matches(name, list(known), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"{where} has no parameter {name!r}{hint} (it has: {', '.join(known)})")


def converted(name: str, value):
    """`value` in the type that PARAMETERS gives for `name`, also from a command line's text ("126,252", "True").

    UserError where it cannot be, or is out of range.
    """
    kind, meaning = PARAMETERS[name]
    refusal = UserError(f"{name} = {value!r} cannot be used: give {meaning}")
    try:
        if isinstance(kind, list):
            if isinstance(value, str):  # papermill's -p passes a list as it was typed
                value = [item.strip().strip("\"'") for item in value.strip("[]() ").split(",") if item.strip()]
            result = [_scalar(kind[0], item) for item in (value if isinstance(value, list | tuple) else [value])]
        else:
            result = _scalar(kind, value)
    except (TypeError, ValueError):
        raise refusal from None
    if (
        (name in LEAST and not LEAST[name] <= result < math.inf)
        or (name in ALLOWED and not set(result if isinstance(result, list) else [result]) <= set(ALLOWED[name]))
        or (name in ("counts", "batches") and not all(number >= 1 for number in result))
        or (name == "loads" and not all(0 < load < math.inf for load in result))
        or (name == "backends" and not all(result))
        or (name in NEEDED and not (result and all(result)))
        or (isinstance(result, list) and len(set(result)) < len(result))
    ):
        raise refusal
    for size in result if name == "resolutions" else [result] if name == "resolution" and result else []:
        if size <= 0 or size % PATCH:
            raise UserError(
                f"{name} = {value!r} cannot be used: {size} is not a multiple of {PATCH}, the side of a patch"
            )
    return result


def _scalar(kind: type, value):
    """`value` as `kind`; ValueError or TypeError where it is none."""
    if kind is bool:
        return ["false", "true"].index(str(value).lower()) == 1
    if isinstance(value, bool) or (kind is not float and isinstance(value, float)):
        raise ValueError
    return kind(value)


def assigned(source: str) -> dict:
    """{name: value} of the literals that a cell's source assigns at its top level; other statements are passed over."""
    found = {}
    try:
        body = ast.parse(source).body
    except SyntaxError:  # a cell with an IPython magic
        return found
    for node in body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                found[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                continue
    return found


def check_injected(notebook: str, history) -> None:
    """Refuse a name that papermill injected and that no cell before gave a default.

    history: IPython's `In`, the sources of the cells run so far. papermill's own cell begins with "# Parameters".
    """
    cells = list(history)
    for index in [i for i, source in enumerate(cells) if source.startswith(INJECTED)][-1:]:
        own = [source for source in cells[:index] if not source.startswith(INJECTED)]
        known = {name: None for source in own for name in assigned(source)}
        for name in assigned(cells[index]):
            check_name(name, known, f"notebook {notebook}")
