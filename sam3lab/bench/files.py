"""JSON files of a run: written whole or not at all, and read with an error that says what to do."""

import json
from pathlib import Path
from typing import Any

from sam3lab import atomic
from sam3lab.errors import UserError

REMEDY = "publish that run again (`sam3lab study --publish`), or restore the file, as with `git checkout`"


def write_json(path: Path, value: Any) -> None:
    """The value as indented JSON, atomically."""
    atomic.write(path, json.dumps(value, indent=1).encode())


def read_json(path: Path) -> Any:
    """The value of a JSON file. UserError where it is damaged or missing."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): {REMEDY}") from error
