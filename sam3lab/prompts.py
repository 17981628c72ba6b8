"""The study's text prompts, in the three kinds the article compares: a word, a description, several objects."""

import csv
from dataclasses import dataclass
from pathlib import Path

from sam3lab.errors import UserError
from sam3lab.paths import DATA

KINDS = ("word", "description", "objects")
PROMPTS = DATA / "prompts.csv"


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    `tokens` counts its CLIP tokens, start and end included, before padding. `objects` are the things it asks for: the
    text itself, or for the kind "objects" each thing named, to be run as prompts of their own.
    """

    kind: str
    text: str
    objects: tuple[str, ...]
    tokens: int


def load(path: Path = PROMPTS) -> list[Prompt]:
    """The prompts of a CSV file with the columns kind, text, objects (separated by ";") and tokens, in its order.

    Raises UserError naming the file and the line that is wrong.
    """
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            missing = {"kind", "text", "objects", "tokens"} - set(reader.fieldnames or ())
            if missing:
                raise UserError(f"{path} lacks the columns {', '.join(sorted(missing))}; its first line names them")
            prompts = [_prompt(row, f"{path}, line {reader.line_num}") for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read the prompts {path}: {error}; give a CSV file in UTF-8") from error
    if not prompts:
        raise UserError(f"{path} has no prompts; give at least one line after the column names")
    return prompts


def by_kind(kind: str, path: Path = PROMPTS) -> list[Prompt]:
    """The prompts of one kind: "word", "description" or "objects". Raises UserError on another."""
    if kind not in KINDS:
        raise UserError(f"no prompts of kind {kind!r}; the kinds are {', '.join(KINDS)}")
    return [prompt for prompt in load(path) if prompt.kind == kind]


def _prompt(row: dict[str, str | None], place: str) -> Prompt:
    kind, text, objects, tokens = ((row[column] or "").strip() for column in ("kind", "text", "objects", "tokens"))
    things = tuple(thing.strip() for thing in objects.split(";"))
    if kind not in KINDS:
        raise UserError(f"{place}: the kind {kind!r} is none of {', '.join(KINDS)}")
    if not text or not all(things):
        raise UserError(f"{place}: text and objects must not be empty; objects are separated by single semicolons")
    if not tokens.isdecimal():
        raise UserError(f"{place}: tokens is {tokens!r}; give the whole number of tokens, start and end included")
    return Prompt(kind, text, things, int(tokens))
