"""numbers.json: every number that the report's prose may hold, recorded by the notebook that measured it.

Prose names a number by its key in braces, `{runtimes.speedup.onnxruntime}`, and `fill` puts the formatted number there,
so that a sentence can neither be stale nor hold a measurement typed by hand.
"""

import difflib
import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

from sam3lab import atomic
from sam3lab.bench.case import PRECISIONS
from sam3lab.errors import UserError

if TYPE_CHECKING:
    from sam3lab.bench.statistics import Estimate

KEY = re.compile(r"\{([A-Za-z0-9_.:\-*]+)(?:\|(value|text))?\}")
# Units that stand without a space before them, and those whose large values read better in the next unit up.
TIGHT = {"×", "%"}
LARGER = {"ms": (1000, "s"), "MB": (1000, "GB"), "GB/s": (1000, "TB/s"), "GFLOP/s": (1000, "TFLOP/s")}
WORDS = {
    "faster": "faster than",
    "slower": "slower than",
    "same": "as fast, within the noise, as",
    "ambiguous": "not to be told apart from",
    "less": "less than",
    "more": "more than",
    "equal": "as much, within the noise, as",
}

_NUMBER = r"(?<![\w.])(?:\d+(?:[.,]\d+)*|half|(?:one|two|three|four|five|six|seven|eight|nine|ten))"
_UNIT = (
    r"(?:[mµn]?s|seconds?|minutes?|hours?|[kKMGT]i?B(?:/s)?|%|per ?cent|×|x|times|-?fold|images/s|[GT]FLOP/s|GHz|Hz)"
)
_MEASUREMENT = re.compile(
    rf"{_NUMBER}\s*{_UNIT}(?!\w)|(?<![\w.])\d+\.\d+(?![\w.])|(?<!\w)(?:twice|double|triple) (?:as|the)(?!\w)"
)
# What may stand as it is: a section of a text, a stated level of confidence, and a half as a scale of the resolution.
_ALLOWED = re.compile(r"[Ss]ections? \d+(?:\.\d+)*(?: (?:and|to) \d+(?:\.\d+)*)?|95 ?% (?:confidence )?intervals?")


def measurements(text: str) -> list[str]:
    """Hand-typed measurements in prose: a number with a unit, a decimal, "twice as"; keys in braces and `code` do not count.

    Allowed are "section 4.1" and "95% interval"; everything else is to come from numbers.json.
    """
    text = re.sub(r"`[^`]*`", " ", KEY.sub(" ", text))
    return [match.group(0) for match in _MEASUREMENT.finditer(_ALLOWED.sub(" ", text))]


def digits(value: float, significant: int = 3, places: int | None = None) -> str:
    """`value` with so many significant digits, or decimal places, with an exponent only under 0.001."""
    if not math.isfinite(value):
        return "–"
    if 0 < abs(value) < 1e-3:
        return f"{value:.1e}"
    places = _places(value, significant) if places is None else places
    text = f"{round(value, places):,.{max(places, 0)}f}"
    return text.replace(",", "\u2009").replace("-", "−")


def _places(value: float, significant: int) -> int:
    """Decimal places that show `value` with so many significant digits."""
    return significant - 1 - math.floor(math.log10(abs(value))) if value else significant - 1


def interval(value: float, low: float | None = None, high: float | None = None, unit: str = "") -> str:
    """ "12.3 [12.1, 12.6] ms": an estimate with its 95% interval, where it has one, all in one unit and precision."""
    if unit in LARGER and math.isfinite(value):
        factor, larger = LARGER[unit]
        if abs(value) >= factor:
            value, unit = value / factor, larger
            low, high = (None if end is None else end / factor for end in (low, high))
    after = unit if unit in TIGHT else f" {unit}" if unit else ""
    if low is None or high is None or not all(map(math.isfinite, (value, low, high))):
        return digits(value) + after
    places = _places(value, 3)
    return f"{digits(value, places=places)} [{digits(low, places=places)}, {digits(high, places=places)}]{after}"


def number(estimate, unit: str = "") -> dict:
    """The JSON record of one number: an estimate (value, low, high; null where it has no interval), a plain number, or a
    word such as a verdict.

    A whole number (int) is a count, and is written without decimal places.
    """
    if isinstance(estimate, str):
        return {"value": estimate, "unit": unit, "text": estimate}
    if isinstance(estimate, int):
        text = digits(estimate, places=0) + (f" {unit}" if unit else "")
        return {"value": estimate, "low": None, "high": None, "unit": unit, "text": text}
    value, low, high = (getattr(estimate, name, None) for name in ("value", "low", "high"))
    value = float(estimate if value is None else value)
    low, high = (float(end) if end is not None and math.isfinite(end) else None for end in (low, high))
    return {"value": value, "low": low, "high": high, "unit": unit, "text": interval(value, low, high, unit)}


def estimate(record: dict) -> "Estimate":
    """The estimate of such a record, with NaN for an interval that it has not."""
    from sam3lab.bench.statistics import Estimate

    low, high = (math.nan if record[end] is None else record[end] for end in ("low", "high"))
    return Estimate(record["value"], low, high)


def load(path: Path) -> dict[str, dict]:
    """{key: record} of a numbers.json; empty where there is none yet."""
    return json.loads(Path(path).read_text(encoding="utf-8")) if Path(path).exists() else {}


def rows(records: dict[str, dict], key: str) -> dict[tuple[str, str], dict]:
    """{(backend, precision): record} of the numbers `<key>.<backend>.<precision>`."""
    named = re.compile(rf"{re.escape(key)}\.([\w:-]+)\.({'|'.join(PRECISIONS)})")
    return {match.groups(): record for name, record in records.items() if (match := named.fullmatch(name))}


def merge(path: Path, notebook: str, records: dict[str, dict]) -> None:
    """Replace what `notebook` recorded in the numbers.json at `path` by `records`; other notebooks' numbers stay.

    UserError where a key is another notebook's.
    """
    kept = {key: record for key, record in load(path).items() if record["notebook"] != notebook}
    for key in records:
        if key in kept:
            raise UserError(f"{notebook} records {key!r}, which is a number of {kept[key]['notebook']}: rename one.")
    whole = dict(sorted((kept | {key: record | {"notebook": notebook} for key, record in records.items()}).items()))
    atomic.write(Path(path), json.dumps(whole, indent=1, ensure_ascii=False).encode() + b"\n")


def keys(template: str) -> set[str]:
    """The keys that a template names."""
    return {match.group(1) for match in KEY.finditer(template)}


def fill(template: str, records: dict[str, dict]) -> str:
    """`template` with every `{key}` replaced by the recorded text, and every `{key|value}` by value and unit alone.

    UserError on a key that was not recorded (the nearest known ones are named), and on a measurement typed by hand.
    """
    if typed := measurements(template):
        raise UserError(f"A measurement typed by hand, {typed[0]!r}, in {template!r}: record it and name its key.")

    def text(match):
        key, form = match.groups()
        if key not in records:
            near = difflib.get_close_matches(key, records, 3)
            raise UserError(f"No number {key!r} was recorded{'; near: ' + ', '.join(near) if near else ''}.")
        record = records[key]
        plain = form == "value" and not isinstance(record["value"], str)
        return interval(record["value"], unit=record["unit"]) if plain else record["text"]

    return KEY.sub(text, template)
