"""How right the runtimes are, for the notebooks: what results.accuracy knows, as frames of estimates and verdicts.

A frame `scored` has a row for each accuracy case; it is empty where nothing was scored.
"""

import math

from sam3lab.bench.parity import LIMITS, SPLIT
from sam3lab.bench.statistics import AGREEING, Estimate
from sam3lab.study import tables
from sam3lab.study.style import look, ordered
from sam3lab.study.tables import BY

NAMES = {"cgf1": "cgF1", "ap": "Mask AP"}
SCALES = {"cgf1": 1, "ap": 100}  # both are shown from 0 to 100
WHY = {
    "failed": "its outputs are not native PyTorch's",
    "not judged": "it detected nothing to be judged by",
    "missing": "its outputs were compared with nothing",
}
CHANGE = SPLIT.score  # the most that a detection's score may differ from the reference's
# What the two columns of `build` say, for the notebooks that show them.
COLUMNS = (
    "Tensors: whether the outputs are those of native PyTorch in fp32, with the checkpoint that is timed. Detections: "
    "whether in the scenes it finds what that finds, with the checkpoint that is scored. A row that fails in either "
    "counts as failed; but detections with another checkpoint than the timed one decide for int8 and fp8 alone."
)


def frame(scored, metric: str, by=BY):
    """cgF1 ("cgf1") or mask AP ("ap") from 0 to 100, as a frame with the columns `by`, value, low, high."""
    ends = {"value": metric, "low": f"{metric}_low", "high": f"{metric}_high"}
    values = {end: scored[name] * SCALES[metric] for end, name in ends.items()}
    return scored[[*by]].assign(**values).reset_index(drop=True)


def judged(samples, scored, same: bool = True):
    """The samples with the parity that counts here: failed where either the tensors or the detections in the scenes are
    not the reference's. Where the samples' own outputs left nothing to judge by (int8, which detected nothing), the
    scenes alone tell; nothing else that is wrong with them can be made good there.

    same: whether the scored checkpoint is the timed one; if not, what it detects decides only where tensors do not (int8).
    The columns tensors and detections hold the two verdicts by themselves, the latter empty where nothing was scored.
    """
    verdicts = _verdicts(scored)

    def verdict(own: str, precision: str, seen: str) -> str:
        if own == "not judged" and seen in ("passed", "failed"):
            return seen
        decides = same or LIMITS[precision].relative is None
        return "failed" if seen == "failed" and decides else own

    detections = [verdicts.get(group, "") for group in samples[BY].itertuples(index=False, name=None)]
    both = zip(samples["parity"], samples["precision"], detections, strict=True)
    return samples.assign(parity=[verdict(*each) for each in both], tensors=samples["parity"], detections=detections)


def build(judged, cells, absent=None):
    """`tables.build` by runtime and precision of what `judged` gave, with two columns in place of Parity: see COLUMNS."""
    groups = judged.drop_duplicates(BY)[[*BY, "detections"]].itertuples(index=False, name=None)
    seen = {(backend, precision): _word(state) for backend, precision, state in groups if state}
    own = judged.assign(parity=judged["tensors"])
    cells = cells | ({"Detections": seen} if seen else {})
    frame = tables.build(own, cells, BY, tables.HEADINGS, absent).rename(columns={"Parity": "Tensors"})
    last = [name for name in ("Tensors", "Detections") if name in frame]
    return frame[[*(name for name in frame if name not in last), *last]]


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
    """The rows of a frame of estimates whose runtime and precision are shown right in `judged`."""
    wrong = unproven(judged)
    return estimates[[group not in wrong for group in estimates[BY].itertuples(index=False, name=None)]]


def unproven(judged) -> set[tuple[str, str]]:
    """The (backend, precision) that are not shown in `judged` to be what the reference is."""
    return set(judged.loc[~judged["parity"].isin(AGREEING), BY].itertuples(index=False, name=None))


def unlike(judged) -> set[tuple[str, str]]:
    """The (backend, precision) that failed in anything, be it in the scenes with another checkpoint."""
    return unproven(judged) | set(judged.loc[judged["detections"] == "failed", BY].itertuples(index=False, name=None))


def said(cases, judged, scored, size: dict, unseen) -> dict[str, tuple]:
    """What `Study.record` takes of the cases besides estimates: {key: (value, unit)}.

    scenes, how many were scored, checkpoint, with which, iou, the mean IoU of the reference's matched masks in them, and
    unseen, its cgF1 in the scored rows of another split; and of each case, with keys that end in its backend.precision:
    name; size in MB and smaller, how many times less it is than the same runtime's in fp32, where they differ, from
    `size`; why it failed, where it did; unlike, what the scenes hold against it, where that does not decide.
    """
    states = judged.drop_duplicates(BY).set_index(BY)[["parity", "tensors", "detections"]]
    reasons = dict(zip(scored[BY].itertuples(index=False, name=None), scored["reason"], strict=True))
    found: dict[str, tuple] = {}
    if len(scored):
        found = {"scenes": (str(scored["scenes"].max()),), "checkpoint": (scored["checkpoint"].iloc[0],)}
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
        counts, tensors, detections = states.loc[group]
        if counts not in AGREEING:
            seen = reasons[group] if detections == "failed" and tensors != "failed" else WHY[tensors]
            found[f"why.{end}"] = (seen,)
        elif detections == "failed":
            found[f"unlike.{end}"] = (reasons[group],)
    return found


def changes(scored):
    """The greatest change of a score from the reference's, in 0..1, of what has one: a frame of BY, value, low, high (NaN)."""
    others = scored[scored["score_difference"] > 0]
    return others[BY].assign(value=others["score_difference"], low=math.nan, high=math.nan)


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
        rows.append((*about, *found, _word(row.parity), row.reason))
    head = ["Runtime", "Precision", "Scenes", "cgF1", "Detections matched", "Mean mask IoU", "Least mask IoU"]
    return pd.DataFrame(rows, columns=[*head, "Scores differ by", "Verdict", "Why"])


def key(samples, scored, same: bool = True):
    """The table of each runtime and precision: how fast and how accurate it is on the base case. same: as in `judged`.

    What counts as failed has no ratio.
    """
    base = judged(samples[samples["mode"] == "speed"], scored, same)
    columns = {"Times as fast": tables.ratios(base, by=BY, to=tables.FP32, invert=True)}
    if len(scored):
        columns |= {name: frame(scored, metric, BY) for metric, name in NAMES.items()}
    return build(base, {heading: tables.column(each, BY) for heading, each in columns.items()})


def counts(parity, scored, twins) -> dict[str, int | str]:
    """How many cases were compared and failed, by tensors (checks.parity's table) and by detections in the scenes, with
    which checkpoint, where any was scored; and how many stages have a twin and are unlike it (statistics.aa_check).
    """
    found = {"compared": len(parity), "failed": (parity["Verdict"] == "FAILED").sum()}
    found |= {"scored": (scored["parity"] != "reference").sum(), "unseen": (scored["parity"] == "failed").sum()}
    found |= {"twins": len(twins), "unlike": (~twins["agrees"].astype(bool)).sum()}
    whose = {} if scored.empty else {"checkpoint": scored["checkpoint"].iloc[0]}
    return whose | {name: int(count) for name, count in found.items()}


def _word(state: str) -> str:
    """A verdict as tables show it."""
    return "FAILED" if state == "failed" else state


def _verdicts(scored) -> dict[tuple[str, str], str]:
    return dict(zip(scored[BY].itertuples(index=False, name=None), scored["parity"], strict=True))
