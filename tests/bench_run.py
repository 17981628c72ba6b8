"""What the harness's tests share: a checkpoint that no fake backend reads, and short runs."""

from pathlib import Path

from sam3lab.bench.case import Case
from sam3lab.bench.runner import measure

REFERENCE = "tests.fakes:Quick"


def make_checkpoint(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return str(folder)


def case(checkpoint: str, backend: str = REFERENCE, **fields) -> Case:
    return Case(**{"checkpoint": checkpoint, "backend": backend, "resolution": 28, "mode": "model"} | fields)


def short(cases, run_dir, **options):
    options = {"rounds": 1, "min_samples": 3, "min_seconds": 0.0, "progress": False, "reference": REFERENCE} | options
    return measure(cases, run_dir, **options)
