"""Reading what was measured: from a run's directory, or from what `consolidate` made of one."""

import dataclasses
from pathlib import Path
from typing import Any

import pandas as pd

from sam3lab import atomic
from sam3lab.bench import files, parity, records
from sam3lab.bench.accuracy import Accuracy
from sam3lab.bench.case import FIELDS, Case
from sam3lab.errors import UserError

ROWS = "results.parquet"
_PARITY, _FAILURES, _ENVIRONMENT = "parity.parquet", "failures.parquet", "environment.json"
_STORED = (ROWS, _PARITY, _FAILURES, _ENVIRONMENT)
_COMPARED = {"expected": "compared", "matched": "agreeing"} | {
    name: name for name in ("mask_iou_mean", "mask_iou_min", "box_iou_min", "score_difference", "reason")
}
_FAILURE_COLUMNS = ["case", "label", "round", "status", "reason", "log"]
SLOWED = 0.5  # a round is slowed where more than this share of the samples that count are disturbed
_ROUNDS = 3  # that count at least, since fewer tell little of their own noise


def load(run_dir: Path) -> pd.DataFrame:
    """One row a sample of every finished case-round; empty where nothing is finished.

    Columns: run_id, case, label, round, stage, phase, metric, value, unit, sample, parity, and every field of Case.

    stage      image, text, detect, pipeline, pipeline_cached, end_to_end; or process, for what is no stage's; or the
               split of an accuracy case
    phase      load, first, warmup, steady, memory, accuracy; cold, in place of load and first, of a cold case; disturbed,
               what was measured of the steady phase but does not count: samples (see host_speed), and all of a round that
               was slowed where three others of the case and stage were less so
    metric     wall, cuda_event (ms). Of a stage's steady phase on a GPU, one value a round: energy (J an image) and
               power (W) of calls one after another, clock_sm, clock_memory (MHz), temperature (C, the greatest), limited
               (the share of readings at which something held the clocks down); and slowed, the share of disturbed samples
               among those that count, more than 0 where too few were undisturbed. Of end_to_end, masks: how many a call
               makes. Of the process, s: process_start (spawn to the worker's first line), import, load, startup (spawn to
               the first pipeline's outputs in the host's memory); of a cold case also prepare, export and build (prepare's
               two parts) and first (the first pipeline). MB (10^6 bytes): rss (after load), rss_peak_startup (up to the
               first result), rss_peak (over warm-up and steady state of the pipeline), gpu (after load), gpu_peak (up to
               the pipeline's end), torch_allocated_peak, torch_reserved_peak. Of an accuracy case: scenes, and the fields
               of bench.accuracy.Accuracy (see `accuracy`).
    parity     passed, failed, reference, missing where there was nothing to compare with, or not judged where nothing was
               detected and only that counts

    Raises UserError for rows of several environments, a damaged file, or a directory that is none of ours.
    """
    run_dir = _directory(run_dir)
    rows = _spared(_with(tuple, _rows(run_dir)))
    verdicts = parity.verdicts(parity_rows(run_dir))
    rows["parity"] = [verdicts.get(case, "missing") for case in rows["case"]]
    return rows


def case_rounds(stored: Path) -> int:
    """How many rounds of cases a consolidated run holds, all cases together; 0 where there is none."""
    path = Path(stored) / ROWS
    return len(pd.read_parquet(path, columns=["case", "round"]).drop_duplicates()) if path.exists() else 0


def failures(run_dir: Path) -> pd.DataFrame:
    """One row for each thing that went wrong: case, label, round, status, reason, log, and every field of Case.

    status: failed (a crash), timeout, skipped (this machine cannot run it), parity (ran, but computes something else).
    log: the worker's output, relative to the run's directory.
    """
    run_dir = _directory(run_dir)
    if _is_stored(run_dir):
        return _with(tuple, _read(run_dir / _FAILURES))
    marks = records.marks(run_dir)
    found = [_failure(mark, mark["status"], mark["reason"]) for mark in marks if mark["status"] != "done"]
    first = {mark["case"]: mark for mark in marks if mark["status"] == "done" and mark["round"] == 0}
    compared = parity_rows(run_dir)
    for case, group in compared[~compared["passed"]].groupby("case", sort=True):
        if case in first:
            reasons = group.groupby("reason", sort=False)["output"].agg(", ".join)
            reason = "; ".join(f"{outputs}: {reason}" for reason, outputs in reasons.items())
            found.append(_failure(first[case], "parity", reason))
    return _with(tuple, pd.DataFrame(found, columns=[*_FAILURE_COLUMNS, *FIELDS]))


def accuracy(run_dir: Path) -> pd.DataFrame:
    """One row for each accuracy case that is done: case, label, every field of Case, split, and

    - scenes and the fields of bench.accuracy.Accuracy: how right it is;
    - parity (as in `load`), compared (detections at a score of 0.5 of both sides, its own and the fp32 reference's),
      agreeing (those of them with a partner on the other side), mask_iou_mean, mask_iou_min, box_iou_min,
      score_difference over the couples, NaN where there was nothing to compare with, and reason, why parity failed:
      whether it finds what the reference finds in the whole split (see bench.split_parity).
    """
    rows = load(run_dir)
    rows = rows[rows["phase"] == "accuracy"]
    about = rows.drop_duplicates("case").set_index("case")[["label", *FIELDS, "stage", "parity"]]
    kinds = {"scenes": int} | {field.name: field.type for field in dataclasses.fields(Accuracy)}
    values = rows.pivot(index="case", columns="metric", values="value").reindex(columns=list(kinds))
    values = values.astype({name: "int64" for name, kind in kinds.items() if kind is int})
    compared = parity_rows(run_dir).set_index("case")
    compared = compared.loc[compared.index.isin(about.index), list(_COMPARED)].rename(columns=_COMPARED)
    return about.rename(columns={"stage": "split"}).join(values).join(compared).reset_index()


def parity_rows(run_dir: Path) -> pd.DataFrame:
    """One row for each output of each compared case; see parity.COLUMNS."""
    run_dir = _directory(run_dir)
    return parity.judged(_read(run_dir / _PARITY)) if _is_stored(run_dir) else parity.load(run_dir)


def environment(run_dir: Path) -> dict[str, Any]:
    """What the run was measured on. Raises UserError where nothing was."""
    run_dir = _directory(run_dir)
    if _is_stored(run_dir):
        return files.read_json(run_dir / _ENVIRONMENT)
    facts = records.environments(run_dir)
    if facts is None:
        raise UserError(f"nothing was measured in {run_dir} yet; run `sam3lab measure` or a notebook with measure=True")
    return facts


def consolidate(run_dir: Path, out_dir: Path) -> None:
    """The run as four files that fit into a repository: rows, parity, failures, environment. `load` reads them alike.

    The bytes depend on nothing but the run. Logs, raw outputs and inputs stay behind. Where files of another run are
    there, the last one is away while they are exchanged: what a kill leaves is not read as if it were whole.
    """
    facts = environment(run_dir)
    tables = {ROWS: _rows(Path(run_dir)), _PARITY: parity_rows(run_dir), _FAILURES: failures(run_dir)}
    data = {
        name: _with(list, table).to_parquet(None, index=False, compression="zstd") for name, table in tables.items()
    }
    (Path(out_dir) / _ENVIRONMENT).unlink(missing_ok=True)
    for name, content in data.items():
        atomic.write(Path(out_dir) / name, content)
    files.write_json(Path(out_dir) / _ENVIRONMENT, facts)


def _directory(run_dir: Path) -> Path:
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise UserError(f"there is no run at {run_dir}; measure first, or name a directory that holds results")
    return run_dir


def _is_stored(run_dir: Path) -> bool:
    """Whether a directory holds what `consolidate` makes. UserError where it holds but a part of it."""
    missing = [name for name in _STORED if not (run_dir / name).exists()]
    if missing and len(missing) < len(_STORED):
        raise UserError(f"{run_dir} holds stored results without {', '.join(missing)}: {files.REMEDY}")
    return not missing


def _rows(run_dir: Path) -> pd.DataFrame:
    """What was measured, as it was: which rounds count is decided at every reading."""
    if _is_stored(run_dir):
        return _read(run_dir / ROWS)
    records.environments(run_dir)
    return _gather(run_dir)


def _read(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's own errors are among these
        raise UserError(f"{path} is damaged ({error}): {files.REMEDY}") from error


def _gather(run_dir: Path) -> pd.DataFrame:
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = [records.table("", Case(), 0, [])]
    for path in sorted((run_dir / "results").glob("*-r*.json")):
        mark = records.read_mark(path)
        if mark is None or mark["status"] != "done":
            continue
        if not records.intact(path, mark):
            raise UserError(f"{path.with_suffix('.parquet')} is damaged; measure again, which makes it anew")
        tables.append(pq.read_table(path.with_suffix(".parquet")))
    return pa.concat_tables(tables).to_pandas()


def _spared(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, where a round that was slowed does not count if three others, of the same case and stage, were less so."""
    keys = ["case", "stage", "round"]
    told = rows.loc[rows["metric"] == "slowed", [*keys, "value"]].sort_values(["value", "round"])
    beyond = told.groupby(keys[:2]).cumcount() >= _ROUNDS
    slowed = pd.MultiIndex.from_frame(told.loc[beyond & (told["value"] > SLOWED), keys])
    steady = (rows["phase"] == "steady") & (rows["metric"] != "slowed")
    among = pd.MultiIndex.from_frame(rows[keys]).isin(slowed)
    return rows.assign(phase=rows["phase"].mask(steady & among, "disturbed"))


def _with(kind: type, frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with its prompts and images as tuples, which can be grouped by, or as lists, which Parquet has."""
    lists = {name: [kind(value) for value in frame[name]] for name in ("prompts", "images") if name in frame}
    return frame.assign(**lists)


def _failure(mark: dict[str, Any], status: str, reason: str) -> dict[str, Any]:
    common = {name: mark.get(name) for name in _FAILURE_COLUMNS}
    return common | mark["definition"] | {"status": status, "reason": reason}
