"""What a run directory holds, and how it gets there so that a kill at any moment leaves no half-written record.

    run.json                            the run's id
    results/<case>-r<round>.parquet     one row a sample
    results/<case>-r<round>.json        the mark: how that case-round ended, with the Parquet file's SHA-256
    results/environment-<digest>.json   what was measured on
    inputs/, outputs/                   what the backends were fed, and what they answered in round 0
    predictions/<case>.json             what was found in the scenes of a split, and truth-<split>.json, what is there
    parity/<case>.json                  that answer beside the reference's
    logs/, work/                        the workers' output, and what passes between processes

Files are written beside their place, synced and renamed; the mark comes last, so where it is, all is.
"""

import contextlib
import datetime
import fcntl
import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sam3lab import atomic, paths
from sam3lab.bench import environment
from sam3lab.bench.case import Case
from sam3lab.bench.files import write_json
from sam3lab.errors import UserError

Mark = dict[str, Any]
FAILED = ("failed", "timeout")  # what is not tried again by itself, as a skipped case is


def named(name: str) -> Path:
    """The directory of the run of that name, in runs/. UserError unless it is a plain name."""
    if name in ("", "..") or Path(name).name != name:
        raise UserError(f"the run name {name!r} is no plain name: give that of a folder in {paths.RUNS}")
    return paths.RUNS / name


@contextlib.contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Holds the run directory for one measure() at a time; the system lets go of it however the process ends."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise UserError(
                f"{run_dir} is being measured by process {holder}; wait for it, or choose another run name"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def run_id(run_dir: Path) -> str:
    """The run's id, made when first asked for: its directory's name, the day, and six hex digits."""
    path = run_dir / "run.json"
    if not path.exists():
        day = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d")
        write_json(path, {"run_id": f"{run_dir.resolve().name}-{day}-{uuid.uuid4().hex[:6]}"})
    return json.loads(path.read_text())["run_id"]


def adopt_environment(run_dir: Path, facts: dict[str, Any]) -> str:
    """Its digest, after writing it. Raises UserError where the run holds results of another environment."""
    digest = environment.fingerprint(facts)
    path = run_dir / "results" / f"environment-{digest}.json"
    if not path.exists():
        environments(run_dir, facts)
        write_json(path, facts)
    return digest


def environments(run_dir: Path, *more: dict[str, Any]) -> dict[str, Any] | None:
    """The run's environment, None where nothing was measured yet.

    Raises UserError, naming what differs, where there are several: their rows must not be compared as if they were one.
    """
    known = [json.loads(path.read_text()) for path in sorted((run_dir / "results").glob("environment-*.json"))]
    known.extend(more)
    for other in known[1:]:
        if differences := environment.differences(known[0], other):
            listed = "; ".join(f"{key}: {old!r} and {new!r}" for key, (old, new) in differences.items())
            raise UserError(
                f"{run_dir} would mix rows of different environments ({listed}); "
                "choose another run name, or remove that directory to measure afresh"
            )
    return known[0] if known else None


def mark_path(run_dir: Path, case: Case, round_: int) -> Path:
    return run_dir / "results" / f"{case.id}-r{round_}.json"


def outputs_path(run_dir: Path, case: Case) -> Path:
    """What a case computed in round 0: raw outputs, or an accuracy case's predictions as COCO results."""
    if case.mode == "accuracy":
        return run_dir / "predictions" / f"{case.id}.json"
    return run_dir / "outputs" / f"{case.id}.npz"


def read_mark(path: Path) -> Mark | None:
    """None where there is no mark or no whole one."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def marks(run_dir: Path) -> list[Mark]:
    """Every mark of the run, in order of file name."""
    paths = (run_dir / "results").glob("*-r*.json")
    return [mark for mark in map(read_mark, sorted(paths)) if mark is not None]


def case_marks(run_dir: Path, case: Case) -> list[Mark]:
    """The marks of one case."""
    paths = (run_dir / "results").glob(f"{case.id}-r*.json")
    return [mark for mark in map(read_mark, sorted(paths)) if mark is not None]


def verdict_path(run_dir: Path, case: Case) -> Path:
    """What parity found of the outputs."""
    return run_dir / "parity" / f"{case.id}.json"


def is_done(run_dir: Path, case: Case, round_: int) -> bool:
    """A clean end, rows on disk with the right checksum, and in round 0 what parity needs: the outputs, or the verdict on
    raw ones, so that a run can be moved to another disk without them. Predictions are for other readers, too.
    """
    mark = _finished(mark_path(run_dir, case, round_))
    if mark is None:
        return False
    outputs = outputs_path(run_dir, case)
    if round_ > 0 or (case.mode != "accuracy" and verdict_path(run_dir, case).exists()):
        return True
    return outputs.exists() and outputs.stat().st_size == mark["outputs_bytes"]


def _finished(path: Path) -> Mark | None:
    """The mark at `path` where its round came to its end and its rows are whole, else None."""
    mark = read_mark(path)
    return mark if mark is not None and mark["status"] == "done" and intact(path, mark) else None


def intact(path: Path, mark: Mark) -> bool:
    """Whether the Parquet file of a mark at `path` is the one that was marked."""
    rows = path.with_suffix(".parquet")
    return rows.exists() and hashlib.sha256(rows.read_bytes()).hexdigest() == mark["sha256"]


def record(run_dir: Path, case: Case, round_: int, measurements: list[dict[str, Any]], **facts: Any) -> None:
    """A finished case-round: its rows, then its mark. `measurements` is what the worker wrote."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = mark_path(run_dir, case, round_)
    rows = table(run_id(run_dir), case, round_, measurements)
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd")
    data = memoryview(sink.getvalue())
    atomic.write(path.with_suffix(".parquet"), data)
    outputs = outputs_path(run_dir, case)
    _mark(
        path,
        case,
        round_,
        "done",
        sha256=hashlib.sha256(data).hexdigest(),
        rows=rows.num_rows,
        outputs_bytes=outputs.stat().st_size if round_ == 0 else None,
        **facts,
    )


def record_failure(run_dir: Path, case: Case, round_: int, status: str, reason: str, **facts: Any) -> None:
    """A case-round that has no rows: status failed, timeout or skipped, with the reason.

    It takes no finished round's place: where `round_` is one, as when its outputs were to be made anew, the next that is
    none has the mark.
    """
    while _finished(mark_path(run_dir, case, round_)):
        round_ += 1
    _mark(mark_path(run_dir, case, round_), case, round_, status, reason=reason, **facts)


def failure(run_dir: Path, case: Case) -> Mark | None:
    """The mark of a case's failure, which keeps its later rounds from being tried; None if it never failed."""
    return next((mark for mark in case_marks(run_dir, case) if mark["status"] in FAILED), None)


def forget_failure(run_dir: Path, case: Case, whichever: bool) -> None:
    """Removes the mark of a case's failure, so that it is tried again; unless `whichever`, of a released one alone."""
    mark = failure(run_dir, case)
    if mark and (whichever or mark.get("released")):
        mark_path(run_dir, case, mark["round"]).unlink()


def release_failures(run_dir: Path) -> None:
    """Has every failure tried again, once, by the next `measure` of its case; until then it stays told."""
    for mark in marks(run_dir):
        if mark["status"] in FAILED:
            write_json(run_dir / "results" / f"{mark['case']}-r{mark['round']}.json", mark | {"released": True})


def _mark(path: Path, case: Case, round_: int, status: str, **facts: Any) -> None:
    finished = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    mark = {"case": case.id, "label": case.label, "round": round_, "status": status, "finished": finished, **facts}
    write_json(path, mark | {"definition": case.to_json()})


def table(run: str, case: Case, round_: int, measurements: list[dict[str, Any]]):
    """The rows of one case-round as a pyarrow Table, one a value; `results.load` describes the columns."""
    import pyarrow as pa

    counts = [len(entry["values"]) for entry in measurements]
    total = sum(counts)

    def spread(key: str) -> list[str]:
        return [entry[key] for entry, count in zip(measurements, counts, strict=True) for _ in range(count)]

    columns = {
        "run_id": pa.array([run] * total, pa.string()),
        "case": pa.array([case.id] * total, pa.string()),
        "round": pa.array([round_] * total, pa.int64()),
        **{key: pa.array(spread(key), pa.string()) for key in ("stage", "phase", "metric", "unit")},
        "value": pa.array([value for entry in measurements for value in entry["values"]], pa.float64()),
        "sample": pa.array([i for count in counts for i in range(count)], pa.int64()),
        "label": pa.array([case.label] * total, pa.string()),
    }
    kinds = {str: pa.string(), int: pa.int64(), list: pa.list_(pa.string())}
    for name, value in case.to_json().items():
        columns[name] = pa.array([value] * total, kinds[type(value)])
    return pa.table(columns)
