"""Where the project's folders are, and where what can be made again is kept."""

import os
from pathlib import Path

ROOT = Path(os.environ.get("SAM3LAB_ROOT") or Path(__file__).resolve().parents[1])
DATA = ROOT / "data"
NOTEBOOKS = ROOT / "notebooks"
FIGURES = ROOT / "figures"
RUNS = ROOT / "runs"


def cache_dir(kind: str) -> Path:
    """The folder for cached artifacts of one kind ("checkpoints", "graphs", …), made if absent.

    SAM3LAB_CACHE names another place than ~/.cache/sam3lab.
    """
    base = os.environ.get("SAM3LAB_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "sam3lab"
    )
    path = Path(base) / kind
    path.mkdir(parents=True, exist_ok=True)
    return path
