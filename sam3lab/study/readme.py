"""The numbers in README.md, which stand between comments that name their keys: `<!-- key -->text<!-- / -->`.

A key is one of the machine whose figures are shown first, or `machine:key` (see stored.published). `sam3lab figures`
writes the numbers anew; a test fails while one differs.
"""

import re

from sam3lab.errors import UserError
from sam3lab.study import numbers

MARK = re.compile(r"(<!-- (?P<key>[\w.:-]+)(?:\|(?P<form>value))? -->).*?(<!-- / -->)", re.DOTALL)


def refresh(text: str, records: dict[str, dict]) -> str:
    """`text` with every marked number as `records` (as stored.published gives them) has it; `<!-- key|value -->` asks for no interval.

    UserError on a key that is not among them, and on a measurement that stands outside of the marks.
    """
    if typed := numbers.measurements(outside(text)):
        raise UserError(
            f"README.md holds a measurement typed by hand, {typed[0]!r}: name its key in a comment before it"
        )

    def put(match: re.Match) -> str:
        key, form = match["key"], match["form"]
        return f"{match[1]}{numbers.fill('{' + key + (f'|{form}' if form else '') + '}', records)}{match[4]}"

    return MARK.sub(put, text)


def outside(text: str) -> str:
    """`text` without its marked numbers, and without fenced code and versions, whose figures are no measurements."""
    return re.sub(r"```.*?```|Python \d+\.\d+|Apache-\d+\.\d+", " ", MARK.sub(" ", text), flags=re.DOTALL)
