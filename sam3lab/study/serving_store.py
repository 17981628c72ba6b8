"""The records of the serving experiments: in a run's directory, one file an experiment, and as one file of published results.

A file is <experiment>.<backend>.<precision>-<digest>.json, the digest that of what the experiment was to do, so that one
is measured again when that changes and only then.
"""

import hashlib
import json
from collections.abc import Callable, Collection
from pathlib import Path

from sam3lab import atomic
from sam3lab.bench import files
from sam3lab.errors import UserError

FOLDER, PUBLISHED = "serving", "serving.parquet"
TEXTS = ("key", "experiment", "backend", "precision", "error", "condition", "event", "engine", "reason")
NUMBERS = (
    "load",  # offered, as a share of the capacity without batching
    "rate",  # offered, requests/s
    "seconds",  # of the phase
    "place",  # of the request among those that are alike, from 0
    "at",  # s from the phase's begin
    "status",  # HTTP's, 0 for no answer
    "latency",  # ms, as the client sees it; of a start, from the start of the process
    "listening",  # ms until the process took connections
    "ready",  # ms until it would take requests
    *("queue", "preprocess", "image", "text", "detect", "download", "decode", "postprocess", "total"),  # ms
    "batch",  # requests computed together
    *("cached_prompts", "cached_image"),
    *("image_calls", "text_calls"),  # of the stage, for this request
    *("expected", "found", "extra"),  # objects, see serving_questions.judged
)


def key(experiment: str, backend: str, precision: str, definition: dict) -> str:
    """The name of an experiment that is defined so."""
    whole = hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()
    return f"{experiment}.{backend}.{precision}-{whole[:10]}"


def is_done(run_dir: Path, name: str) -> bool:
    """Whether the run holds an experiment's records; what failed is tried again."""
    return bool((_read(run_dir / FOLDER / f"{name}.json") or {}).get("records"))


def keep(run_dir: Path, name: str, definition: dict, measure: Callable[[], list[dict]]) -> None:
    """Call `measure` and keep its records, or why there are none."""
    found = {"key": name, "definition": definition, "error": "", "records": []}
    try:
        found["records"] = measure()
        found["error"] = "" if found["records"] else "it gave no records"
    except Exception as error:  # one experiment's; the others go on, and the report says which failed
        found["error"] = f"{type(error).__name__}: {error}"
    files.write_json(run_dir / FOLDER / f"{name}.json", found)


def load(directory: Path, names: Collection[str]):
    """One row a request of the named experiments, from a run's directory or from published results.

    Columns: TEXTS, empty where there is none, and NUMBERS, NaN where there is none. An experiment that failed is one row,
    with the column error. UserError where the published file is damaged.
    """
    directory = Path(directory)
    if (directory / PUBLISHED).exists():
        import pandas as pd

        try:
            rows = pd.read_parquet(directory / PUBLISHED)
        except (OSError, ValueError) as error:
            raise UserError(f"{directory / PUBLISHED} cannot be read ({error}): {files.REMEDY}") from error
    else:
        rows = _gathered(directory)
    return rows[rows["key"].isin(list(names))].reset_index(drop=True)


def consolidate(run_dir: Path, directory: Path) -> None:
    """All that a run holds as one file beside its other published results; none where it holds nothing."""
    rows = _gathered(run_dir)
    if len(rows):
        atomic.write(Path(directory) / PUBLISHED, rows.to_parquet(None, index=False, compression="zstd"))


def _gathered(run_dir: Path):
    import pandas as pd

    lines = []
    for path in sorted((Path(run_dir) / FOLDER).glob("*.json")):
        found = _read(path)
        if found is None:  # of a run that was stopped by force, or by hand
            continue
        experiment, backend, rest = found["key"].split(".", 2)
        about = {"key": found["key"], "experiment": experiment, "backend": backend, "precision": rest.split("-")[0]}
        lines += [about | record for record in found["records"] or [{"error": found["error"]}]]
    frame = pd.DataFrame(lines, columns=[*TEXTS, *NUMBERS])
    texts = frame[list(TEXTS)].fillna("").astype("str")
    return pd.concat([texts, frame[list(NUMBERS)].astype("float64")], axis="columns")


def _read(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
