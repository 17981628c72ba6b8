"""What `sam3lab measure` prints at its end."""

import math
from pathlib import Path

import pandas as pd
from rich.markup import escape
from rich.table import Table

from sam3lab.bench import statistics

_PROCESS = (("startup", "load"), ("startup", "cold"), ("rss_peak", "memory"), ("gpu_peak", "memory"))
_STYLES = {"faster": "green", "slower": "yellow", "failed": "bold red", "missing": "yellow", "not judged": "yellow"}


def medians(rows: pd.DataFrame) -> Table:
    """Every case's stages, start-up and peak memory: median, interval, ratio to the first case and what it says.

    The first is the first in the rows that agrees with the reference; a case that does not agree gets no ratio.
    """
    rows = rows[rows["replica"] == 0]
    agreeing = statistics.agreeing(rows)
    first = agreeing[agreeing["case"] == agreeing["case"].iloc[0]] if len(agreeing) else None
    against = f"relative to {first['label'].iloc[0]}" if first is not None else "relative"
    table = _table("Medians with 95% intervals", "case", "stage", "median", "interval", "", against, "", "parity")
    for _, case in rows.groupby("case", sort=False):
        heading, parity = case["label"].iloc[0], case["parity"].iloc[0]
        for name, samples in _quantities(case):
            median, unit = statistics.median_ci(samples), samples["unit"].iloc[0]
            base = dict(_quantities(first)).get(name) if parity in statistics.AGREEING else None
            ratio, said = "", ""
            if base is not None and case["case"].iloc[0] != first["case"].iloc[0]:
                estimate = statistics.ratio_ci(samples, base)
                ratio, said = _spelled(estimate), "" if unit == "MB" else statistics.verdict(estimate)
            interval = "" if median.rounds == 1 else f"{median.low:.4g} – {median.high:.4g}"
            table.add_row(
                escape(heading), name, f"{median.value:.4g}", interval, unit, ratio, _styled(said), _styled(parity)
            )
            heading = ""
        table.add_section()
    return table


def twins(rows: pd.DataFrame) -> Table:
    """A/A: the same case twice, as if it were two."""
    table = _table("The same case twice (A/A)", "case", "stage", "ratio", "")
    heading = ""
    for line in statistics.aa_check(rows).itertuples():
        ratio = statistics.Estimate(line.ratio, line.low, line.high)
        table.add_row(
            "" if line.label == heading else escape(line.label), line.stage, _spelled(ratio), _styled(line.verdict)
        )
        heading = line.label
    return table


def accuracy(frame: pd.DataFrame, run_dir: Path) -> Table:
    """Rows of results.accuracy: measures with their 95% intervals, agreement with the fp32 reference, predictions."""
    columns = "case", "cgF1", "IL_MCC", "pmF1", "mask AP", "mean IoU", "parity", "agreement", "predictions"
    table = _table("Accuracy with 95% intervals; detections beside those of the fp32 reference", *columns)
    for line in frame.itertuples():
        agreement = (
            ""
            if line.parity in ("reference", "missing")
            else (
                f"{line.agreeing:.0f} of {line.compared:.0f}, mask IoU {line.mask_iou_mean:.4f} "
                f"(least {line.mask_iou_min:.3f}), scores within {line.score_difference:.2g}"
            )
        )
        table.add_row(
            escape(line.label),
            f"{line.cgf1:.2f} [{line.cgf1_low:.2f}, {line.cgf1_high:.2f}]",
            f"{line.il_mcc:.3f}",
            f"{line.pmf1:.3f}",
            f"{line.ap:.3f} [{line.ap_low:.3f}, {line.ap_high:.3f}]",
            f"{line.mean_iou:.3f}",
            _styled(line.parity),
            agreement,
            escape(str(run_dir / "predictions" / f"{line.case}.json")),
        )
    return table


def failures(frame: pd.DataFrame, run_dir: Path) -> Table:
    """What failed, hung, was skipped or does not agree, with its log."""
    table = _table("Failures", "case", "round", "status", "reason", "log")
    for line in frame.itertuples():
        log = str(run_dir / line.log) if line.log else ""
        status = f"[bold red]{line.status}[/bold red]"
        table.add_row(escape(line.label), str(line.round), status, escape(line.reason), escape(log))
    return table


def _quantities(case: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    stages = case.loc[case["phase"] == "steady", "stage"].unique()
    found = [(stage, statistics.select(case, stage)) for stage in stages]
    found += [(metric, statistics.select(case, "process", metric, phase)) for metric, phase in _PROCESS]
    return [(name, samples) for name, samples in found if len(samples)]


def _spelled(ratio: statistics.Estimate) -> str:
    interval = f" [{ratio.low:.3f}, {ratio.high:.3f}]" if math.isfinite(ratio.low) else ""
    return f"{ratio.value:.3f}{interval}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(escape(column), overflow="fold")
    return table


def _styled(text: str) -> str:
    style = _STYLES.get(text)
    return f"[{style}]{text}[/{style}]" if style else text
