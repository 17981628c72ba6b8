"""Writing a file so that a kill at any moment leaves the old one or the new one, and no half."""

import json
import os
from pathlib import Path
from typing import Any


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """All of the data at `path`, on disk, or what was there before; its folder is made if absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: Path, value: Any) -> None:
    """The value as indented JSON, atomically."""
    write_atomically(path, json.dumps(value, indent=1).encode())
