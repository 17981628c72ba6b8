"""How right the runtimes are, for the notebooks: what results.accuracy knows, as frames of estimates and verdicts.

A frame `scored` has a row for each accuracy case; it is empty where nothing was scored.
"""

import math

from sam3lab.bench.parity import LIMITS
from sam3lab.bench.statistics import Estimate
from sam3lab.study import tables
from sam3lab.study.style import look, ordered
from sam3lab.study.tables import BY

NAMES = {"cgf1": "cgF1", "ap": "Mask AP"}
SCALES = {"cgf1": 1, "ap": 100}  # both are shown from 0 to 100


def frame(scored, metric: str, by=BY):
    """cgF1 ("cgf1") or mask AP ("ap") from 0 to 100, as a frame with the columns `by`, value, low, high."""
    ends = {"value": metric, "low": f"{metric}_low", "high": f"{metric}_high"}
    values = {end: scored[name] * SCALES[metric] for end, name in ends.items()}
    return scored[[*by]].assign(**values).reset_index(drop=True)


def judged(samples, scored, same: bool = True):
    """The samples with the parity that counts here: failed where either the tensors or the detections in the scenes are
    not the reference's. Of precisions whose tensors do not decide (int8) the scenes alone do.

    same: whether the scored checkpoint is the timed one; if not, what it detects decides only where tensors do not.
    """
    verdicts = _verdicts(scored)

    def verdict(own: str, group: tuple) -> str:
        decides = LIMITS[group[1]].relative is not None
        if decides and (own == "failed" or not same):
            return own
        return verdicts.get(group, own)

    parity = [verdict(row[0], tuple(row[1:])) for row in samples[["parity", *BY]].itertuples(index=False, name=None)]
    return samples.assign(parity=parity)


def timed(samples, scored):
    """The samples of what was scored, whether or not it agrees with the reference: its accuracy stands beside its time.
    All of them, unchanged, where nothing was scored.
    """
    if scored.empty:
        return samples
    groups = set(_verdicts(scored))
    kept = [group in groups for group in samples[BY].itertuples(index=False, name=None)]
    return samples[kept].assign(parity="passed")


def widest(scored):
    """Of each runtime and precision the row on the test split with the most scenes."""
    rows = scored[scored["split"] == "test"].sort_values("scenes", kind="stable")
    return rows.drop_duplicates(BY, keep="last").reset_index(drop=True)


def only(estimates, judged):
    """The rows of a frame of estimates whose runtime and precision are not failed in `judged`."""
    wrong = failed(judged)
    return estimates[[group not in wrong for group in estimates[BY].itertuples(index=False, name=None)]]


def failed(judged) -> set[tuple[str, str]]:
    """The (backend, precision) that are failed in `judged`."""
    return set(judged.loc[judged["parity"] == "failed", BY].itertuples(index=False, name=None))


def said(cases, judged, scored, size: dict, unseen) -> dict[str, tuple]:
    """What `Study.record` takes of the cases besides estimates: {key: (value, unit)}.

    scenes, how many were scored, iou, the mean IoU of the reference's matched masks in them, and unseen, its cgF1 in the
    scored rows of another split; and of each case, with keys that end in its backend.precision: name; size in MB and smaller, how many times less it is than the same runtime's in fp32, where they differ, from
    `size`; why it failed, where it did.
    """
    wrong = failed(judged)
    reasons = dict(zip(scored[BY].itertuples(index=False, name=None), scored["reason"], strict=True))
    found: dict[str, tuple] = {"scenes": (str(scored["scenes"].max()),)} if len(scored) else {}
    for row in scored[scored["parity"] == "reference"].itertuples():
        found["iou"] = (row.mean_iou,)
    for row in unseen[unseen["parity"] == "reference"].itertuples():
        found["unseen"] = (Estimate(row.cgf1, row.cgf1_low, row.cgf1_high),)
    for case in cases:
        group = case.backend, case.precision
        end = ".".join(group)
        found[f"name.{end}"] = (f"{look(case.backend).label} {case.precision}",)
        found[f"size.{end}"] = size[group], "MB"
        whole = size.get((case.backend, "fp32"), size[group])
        if whole != size[group]:
            found[f"smaller.{end}"] = whole / size[group], "×"
        if group in wrong:
            seen = reasons.get(group)
            found[f"why.{end}"] = (seen if isinstance(seen, str) and seen else "its outputs are not native PyTorch's",)
    return found


def agreement(scored) -> dict[str, dict]:
    """{heading: {(backend, precision): cell}} of what was detected beside what the fp32 reference detects."""
    others = scored[scored["parity"] != "reference"]
    cells = {"Detections matched": {}, "Mean mask IoU": {}, "Least mask IoU": {}, "Scores differ by": {}}
    for row in others.itertuples():
        known = math.isfinite(row.compared)
        matched = f"{row.agreeing:.0f} of {row.compared:.0f}" if known else "–"
        values = (matched, row.mask_iou_mean, row.mask_iou_min, row.score_difference)
        for heading, value in zip(cells, values, strict=True):
            cells[heading][row.backend, row.precision] = value
    return cells


def parity(scored):
    """The detections of each scored case beside those of the fp32 reference, as a table."""
    import pandas as pd

    rank = ordered(scored["backend"])
    rows = []
    for row in scored.sort_values("backend", key=lambda names: names.map(rank.index), kind="stable").itertuples():
        if row.parity == "reference":
            continue
        about = (
            look(row.backend).label,
            row.precision,
            int(row.scenes),
            Estimate(row.cgf1, row.cgf1_low, row.cgf1_high),
        )
        cells = agreement(scored[scored["case"] == row.case])
        found = [cells[heading].get((row.backend, row.precision), math.nan) for heading in cells]
        rows.append((*about, *found, "passed" if row.parity == "passed" else "FAILED", row.reason))
    head = ["Runtime", "Precision", "Scenes", "cgF1", "Detections matched", "Mean mask IoU", "Least mask IoU"]
    return pd.DataFrame(rows, columns=[*head, "Scores differ by", "Verdict", "Why"])


def key(samples, scored, same: bool = True):
    """The table of each runtime and precision: how fast and how accurate it is on the base case. same: as in `judged`."""
    base = judged(samples[samples["mode"] == "speed"], scored, same)
    columns = {"Times as fast": tables.ratios(base, by=BY, to=tables.FP32, invert=True)}
    if len(scored):
        columns |= {name: frame(scored, metric, BY) for metric, name in NAMES.items()}
    cells = {heading: tables.column(each, BY) for heading, each in columns.items()}
    return tables.build(base, cells, BY, ("Runtime", "Precision"))


def counts(parity, scored, twins) -> dict[str, int]:
    """How many cases were compared and failed, by tensors (checks.parity's table) and by detections in the scenes; and
    how many stages have a twin and are unlike it (statistics.aa_check).
    """
    found = {"compared": len(parity), "failed": (parity["Verdict"] == "FAILED").sum()}
    found |= {"scored": (scored["parity"] != "reference").sum(), "unseen": (scored["parity"] == "failed").sum()}
    found |= {"twins": len(twins), "unlike": (~twins["agrees"].astype(bool)).sum()}
    return {name: int(count) for name, count in found.items()}


def _verdicts(scored) -> dict[tuple[str, str], str]:
    return dict(zip(scored[BY].itertuples(index=False, name=None), scored["parity"], strict=True))
