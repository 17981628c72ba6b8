"""Artifacts as JSON, which is how one process tells another what to load."""

import dataclasses
import typing
from pathlib import Path
from typing import Any

from sam3lab.backends.base import Artifacts


def to_json(artifacts: Artifacts) -> dict[str, Any]:
    return {name: str(v) if isinstance(v, Path) else v for name, v in dataclasses.asdict(artifacts).items()}


def from_json(fields: dict[str, Any]) -> Artifacts:
    hints = typing.get_type_hints(Artifacts)
    paths = {name for name, hint in hints.items() if Path in (hint, *typing.get_args(hint))}
    return Artifacts(**{name: Path(v) if name in paths and v is not None else v for name, v in fields.items()})
