"""The gate: does a backend compute what the reference computes? Speed is not compared where it does not.

Raw outputs of the very processes that were timed are compared with those of the fp32 reference on the same inputs:
tensor by tensor (features, text features, logits, presence, boxes, masks, semantic) and by what is detected. Only NumPy
is used, so that no runtime judges itself.

    relative error   ‖out − ref‖₂ / ‖ref‖₂, both norms over the whole tensor: an entry near zero does not count by itself,
                     and a tensor that is wrong in one image or query of several still shows
    cosine           ⟨out, ref⟩ / (‖out‖₂ ‖ref‖₂) over the whole tensor
    max_abs          the greatest absolute difference

Text features count at tokens only: what stands at padding is never read. `presence` holds one log-odds a pair, which may
itself lie near zero, where a relative error means nothing; it also passes where max_abs, in log-odds, is within the same
limit and within PRESENCE (a probability is off by at most a quarter of that). A NaN or infinity fails.

Accuracy cases are compared by what they detect in a whole split, with limits of their own: see `split_parity`.

What is kept is measures; whether they pass is told by the limits that hold when they are read.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sam3lab.bench import files, records, split_parity
from sam3lab.bench.accuracy import CONFIDENCE
from sam3lab.bench.case import Case
from sam3lab.bench.matching import BOX_IOU, SCORE_THRESHOLD, agreement

RAW = ("logits", "presence", "boxes", "masks", "semantic")
NOTHING = "nothing scores above the threshold, so that there is nothing to judge by"


@dataclass(frozen=True)
class Limits:
    """What a precision must keep. relative, cosine: of every tensor, None where single tensors do not decide.
    matched: least share of detections with a partner; mask_iou: least mean over them; score: greatest difference.
    """

    relative: float | None
    cosine: float | None
    matched: float
    mask_iou: float
    score: float


LIMITS = {
    "fp32": Limits(1e-4, 0.9999, 1.0, 0.99, 1e-3),
    "tf32": Limits(1e-2, 0.9995, 0.99, 0.97, 1e-2),
    "fp16": Limits(2e-2, 0.999, 0.98, 0.95, 2e-2),
    "bf16": Limits(4e-2, 0.99, 0.95, 0.90, 5e-2),
    "int8": Limits(None, None, 0.90, 0.85, 0.1),
    "fp8": Limits(None, None, 0.90, 0.85, 0.1),
}
"""Where they come from. fp32: rounding is 6e-8 an operation, and reordered sums over some fifty layers leave 1e-6 to
1e-5; 1e-4 is the study's bar. tf32 and fp16 round products to 11 bits (5e-4), bf16 to 8 bits (4e-3); about twenty to
forty such steps add up before normalisation layers rein them in. bf16 rounds off eight times as much as fp16 and is
allowed twice as much, since a detector without its position encoding differs by 7e-2 with random weights. A cosine under
0.99 is no rounding: public FP16 engines of this model that overflow have 0.04. A relative error r alone allows a cosine down to 1 − r²/2, so that the cosine
limits catch what a norm lets pass only where they are tighter. int8 and fp8 move every tensor on purpose, and are judged
by what they detect; the limits allow what quantised detectors are commonly published with (about one point of accuracy).
"""
PRESENCE = 1e-2  # log-odds: random weights give 2e-2 to 1e-1, so that a constant does not pass
SPLIT = Limits(None, None, 1.0, 0.99, 0.01)  # what every precision must keep over a split

COLUMNS = {
    "case": "str",
    "label": "str",
    "reference": "str",
    "backend": "str",
    "precision": "str",
    "output": "str",
    "cosine": "float64",
    "relative_error": "float64",
    "max_abs": "float64",
    "expected": "float64",
    "matched": "float64",
    "mask_iou_min": "float64",
    "mask_iou_mean": "float64",
    "box_iou_min": "float64",
    "score_difference": "float64",
    "passed": "bool",
    "reason": "str",
}


def compare(reference: Path, other: Path, precision: str) -> dict[str, Any]:
    """{"passed": bool, "rows": […]}: one row an output with cosine, relative_error, max_abs, and one, "detections", with
    the fields of matching.Agreement; each with passed and, where it is not, the reason.

    The files are what Stages.outputs gave, with the digest of the inputs. Raises OSError or ValueError for a file that
    cannot be read.
    """
    with np.load(reference) as a, np.load(other) as b:
        if a["inputs"] != b["inputs"]:
            return _verdict([{"output": "inputs", "reason": "the two were fed different inputs"}], precision)
        names = [name for name in a.files if name not in ("inputs", "text_mask")]
        mask = a["text_mask"]
        rows = [_row(name, _tensor(a, name, mask), _tensor(b, name, mask)) for name in names]
        if all("relative_error" in row for row in rows if row["output"] in RAW):
            raw = [{name: file[name] for name in RAW} for file in (a, b)]
            rows.append({"output": "detections", **agreement(*raw, LIMITS[precision].score)._asdict()})
    return _verdict(rows, precision)


def judge(run_dir: Path, case: Case, reference: Case) -> dict[str, Any]:
    """The verdict on a case, as `compare` gives it, kept in parity/<case>.json with the limits that held.

    It is made again where the reference or, the outputs being there, the limits are others. Without the outputs the
    measures that were kept are judged by the limits of now; only what counted as matched is still by those of then.
    """
    path = records.verdict_path(run_dir, case)
    verdict, limits = records.read_mark(path), _limits(case)
    outputs = records.outputs_path(run_dir, reference), records.outputs_path(run_dir, case)
    kept = verdict is not None and verdict["reference"] == reference.id
    if kept and (verdict.get("limits") == limits or not all(file.exists() for file in outputs)):
        return verdict | _verdict(verdict["rows"], case.precision)
    about = {"case": case.id, "label": case.label, "reference": reference.id}
    about |= {"backend": case.backend, "precision": case.precision, "limits": limits}
    if case.mode == "accuracy":
        verdict = about | _verdict([split_parity.measure(*outputs)], case.precision)
    else:
        verdict = about | compare(*outputs, case.precision)
    files.write_json(path, verdict)
    return verdict


def forget(run_dir: Path, case: Case) -> None:
    """Removes a verdict, when the outputs that it was about are made anew."""
    records.verdict_path(run_dir, case).unlink(missing_ok=True)


def load(run_dir: Path):
    """A DataFrame with COLUMNS: one row for each output of each compared case; NaN where a measure does not apply."""
    import pandas as pd

    rows = []
    for path in sorted((Path(run_dir) / "parity").glob("*.json")):
        verdict = json.loads(path.read_text())
        common = {key: verdict[key] for key in ("case", "label", "reference", "backend", "precision")}
        rows.extend(common | row for row in verdict["rows"])
    return judged(pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS))


def judged(rows):
    """Such a DataFrame with each row's passed and reason by the limits of now, whatever held when it was measured."""
    reasons = [_reason(row, row["precision"]) for row in rows.to_dict("records")]
    return rows.assign(passed=[not reason for reason in reasons], reason=reasons).astype(COLUMNS)


def verdicts(rows) -> dict[str, str]:
    """The state of each case in such a DataFrame; a case that is not in it is "missing".

    reference; passed; failed; or "not judged", where all that is wrong is that there was NOTHING to judge by.
    """
    found = {}
    for case, group in rows.groupby("case"):
        wrong = set(group.loc[~group["passed"], "reason"])
        if wrong - {NOTHING}:
            found[case] = "failed"
        elif set(group["reference"]) == {case}:
            found[case] = "reference"
        else:
            found[case] = "not judged" if wrong else "passed"
    return found


def _limits(case: Case) -> dict[str, float | None]:
    """All numbers that a case's measures and verdict depend on."""
    split = case.mode == "accuracy"
    limits = SPLIT if split else LIMITS[case.precision]
    return asdict(limits) | {
        "presence": PRESENCE,
        "threshold": CONFIDENCE if split else SCORE_THRESHOLD,
        "box_iou": BOX_IOU,
    }


def _tensor(file: Any, name: str, text_mask: np.ndarray) -> np.ndarray | None:
    if name not in file.files:
        return None
    return file[name][text_mask] if name == "text" and file[name].ndim == 3 else file[name]


def _row(name: str, reference: np.ndarray, other: np.ndarray | None) -> dict[str, Any]:
    """The measures of an output, or the reason why it has none."""
    row: dict[str, Any] = {"output": name}
    if other is None:
        return row | {"reason": "absent"}
    if other.shape != reference.shape:
        return row | {"reason": f"shape {list(other.shape)}, expected {list(reference.shape)}"}
    for where, array in (("", other), (" in the reference", reference)):
        if wrong := int(array.size - np.isfinite(array).sum()):
            return row | {"reason": f"{wrong} of {array.size} values are not finite{where}"}
    cosine, relative, max_abs = differences(reference, other)
    return row | {"cosine": cosine, "relative_error": relative, "max_abs": max_abs}


def _verdict(rows: list[dict[str, Any]], precision: str) -> dict[str, Any]:
    judged = [row | {"passed": not reason, "reason": reason} for row in rows for reason in [_reason(row, precision)]]
    return {"passed": all(row["passed"] for row in judged), "rows": judged}


def _reason(row: Mapping[str, Any], precision: str) -> str:
    """Why the measures of a row do not keep the limits, empty where they do; one without measures keeps its reason."""
    limits = SPLIT if row["output"] == "split" else LIMITS[precision]
    if not math.isnan(row.get("expected", math.nan)):
        return ", ".join(_unlike_detections(row, limits))
    if not math.isnan(row.get("relative_error", math.nan)):
        return ", ".join(_unlike_values(row, limits))
    return row.get("reason") or "nothing was measured"


def _unlike_values(row: Mapping[str, Any], limits: Limits) -> list[str]:
    if limits.relative is None or (row["output"] == "presence" and row["max_abs"] <= min(limits.relative, PRESENCE)):
        return []
    reasons = []
    if not row["relative_error"] <= limits.relative:
        reasons.append(f"relative error {row['relative_error']:.2g} over {limits.relative:g}")
    if not row["cosine"] >= limits.cosine:
        reasons.append(f"cosine {row['cosine']:.4f} under {limits.cosine:g}")
    return reasons


def _unlike_detections(row: Mapping[str, Any], limits: Limits) -> list[str]:
    reasons = []
    if row["expected"] == 0 and limits.relative is None:
        reasons.append(NOTHING)
    if row["matched"] < limits.matched * row["expected"]:
        reasons.append(f"{row['matched']:.0f} of {row['expected']:.0f} detections matched")
    if row["matched"] and not row["mask_iou_mean"] >= limits.mask_iou:
        reasons.append(f"mean mask IoU {row['mask_iou_mean']:.3f} under {limits.mask_iou:g}")
    if row["matched"] and not row["score_difference"] <= limits.score:
        reasons.append(f"scores differ by {row['score_difference']:.2g}, over {limits.score:g}")
    return reasons


def differences(reference: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """(cosine, relative error, max_abs) over whole tensors of one shape, in float64; two zero tensors are equal."""
    a, b = reference.reshape(-1), other.reshape(-1)
    aa = bb = ab = dd = worst = 0.0
    block = 1 << 22  # so that float64 copies of a tensor of hundreds of megabytes are never whole
    for start in range(0, a.size, block):
        x, y = (v[start : start + block].astype(np.float64) for v in (a, b))
        d = y - x
        aa, bb, ab, dd = aa + x @ x, bb + y @ y, ab + x @ y, dd + d @ d
        worst = max(worst, float(np.abs(d).max()))
    if dd == 0:
        return 1.0, 0.0, 0.0
    cosine = ab / np.sqrt(aa * bb) if aa > 0 and bb > 0 else 0.0
    relative = np.sqrt(dd / aa) if aa > 0 else float("inf")
    return float(cosine), float(relative), worst
