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
limit (a probability is off by at most a quarter of that). A NaN or infinity fails.

Accuracy cases are compared by what they detect in a whole split, with limits of their own: see `split_parity`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sam3lab.bench import files, records, split_parity
from sam3lab.bench.case import Case
from sam3lab.bench.matching import agreement

RAW = ("logits", "presence", "boxes", "masks", "semantic")


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
    "bf16": Limits(1e-1, 0.99, 0.95, 0.90, 5e-2),
    "int8": Limits(None, None, 0.90, 0.85, 0.1),
    "fp8": Limits(None, None, 0.90, 0.85, 0.1),
}
"""Where they come from. fp32: rounding is 6e-8 an operation, and reordered sums over some fifty layers leave 1e-6 to
1e-5; 1e-4 is the study's bar. tf32 and fp16 round products to 11 bits (5e-4), bf16 to 8 bits (4e-3); about twenty to
forty such steps add up before normalisation layers rein them in. A cosine under 0.99 is no rounding: public FP16 engines
of this model that overflow have 0.04. A relative error r alone allows a cosine down to 1 − r²/2, so that the cosine
limits catch what a norm lets pass only where they are tighter. int8 and fp8 move every tensor on purpose, and are judged
by what they detect; the limits allow what quantised detectors are commonly published with (about one point of accuracy).
"""

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
    limits = LIMITS[precision]
    with np.load(reference) as a, np.load(other) as b:
        if a["inputs"] != b["inputs"]:
            row = {"output": "inputs", "passed": False, "reason": "the two were fed different inputs"}
            return {"passed": False, "rows": [row]}
        names = [name for name in a.files if name not in ("inputs", "text_mask")]
        mask = a["text_mask"]
        rows = [_row(name, _tensor(a, name, mask), _tensor(b, name, mask), limits) for name in names]
        if all(row["comparable"] for row in rows if row["output"] in RAW):
            raw = [{name: file[name] for name in RAW} for file in (a, b)]
            rows.append(_detections(*raw, limits))
    for row in rows:
        row.pop("comparable", None)
    return {"passed": all(row["passed"] for row in rows), "rows": rows}


def judge(run_dir: Path, case: Case, reference: Case) -> dict[str, Any]:
    """The verdict on a case, as `compare` gives it, kept in parity/<case>.json; made once for each pair of outputs."""
    path = records.verdict_path(run_dir, case)
    verdict = records.read_mark(path)
    if verdict is None or verdict["reference"] != reference.id:
        outputs = records.outputs_path(run_dir, reference), records.outputs_path(run_dir, case)
        about = {"case": case.id, "label": case.label, "reference": reference.id}
        about |= {"backend": case.backend, "precision": case.precision}
        verdict = about | (
            split_parity.compare(*outputs) if case.mode == "accuracy" else compare(*outputs, case.precision)
        )
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
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


def verdicts(rows) -> dict[str, str]:
    """ "reference", "passed" or "failed" of each case in such a DataFrame; a case that is not in it is "missing"."""
    found = {}
    for case, group in rows.groupby("case"):
        compared_with = set(group["reference"])
        passed = "reference" if compared_with == {case} else "passed"
        found[case] = passed if group["passed"].all() else "failed"
    return found


def _tensor(file: Any, name: str, text_mask: np.ndarray) -> np.ndarray | None:
    if name not in file.files:
        return None
    return file[name][text_mask] if name == "text" and file[name].ndim == 3 else file[name]


def _row(name: str, reference: np.ndarray, other: np.ndarray | None, limits: Limits) -> dict[str, Any]:
    row: dict[str, Any] = {"output": name, "comparable": False, "passed": False}
    if other is None:
        return row | {"reason": "absent"}
    if other.shape != reference.shape:
        return row | {"reason": f"shape {list(other.shape)}, expected {list(reference.shape)}"}
    row["comparable"] = True
    wrong = int(other.size - np.isfinite(other).sum())
    if wrong:
        return row | {"reason": f"{wrong} of {other.size} values are not finite"}
    cosine, relative, max_abs = differences(reference, other)
    row |= {"cosine": cosine, "relative_error": relative, "max_abs": max_abs}
    reasons = []
    if limits.relative is not None:
        near_zero = name == "presence" and max_abs <= limits.relative
        if not near_zero and not relative <= limits.relative:
            reasons.append(f"relative error {relative:.2g} over {limits.relative:g}")
        if not near_zero and not cosine >= limits.cosine:
            reasons.append(f"cosine {cosine:.4f} under {limits.cosine:g}")
    return row | {"passed": not reasons, "reason": ", ".join(reasons)}


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


def _detections(reference: dict[str, np.ndarray], other: dict[str, np.ndarray], limits: Limits) -> dict[str, Any]:
    row: dict[str, Any] = {"output": "detections"}
    if not all(np.isfinite(other[name]).all() for name in RAW):
        return row | {"passed": False, "reason": "values are not finite"}
    found = agreement(reference, other, limits.score)
    row |= found._asdict()
    reasons = []
    if found.expected == 0 and limits.relative is None:
        reasons.append("nothing scores above the threshold, so that there is nothing to judge by")
    if found.matched < limits.matched * found.expected:
        reasons.append(f"{found.matched} of {found.expected} detections matched")
    if found.matched and found.mask_iou_mean < limits.mask_iou:
        reasons.append(f"mean mask IoU {found.mask_iou_mean:.3f} under {limits.mask_iou:g}")
    if found.matched and found.score_difference > limits.score:
        reasons.append(f"scores differ by {found.score_difference:.2g}, over {limits.score:g}")
    return row | {"passed": not reasons, "reason": ", ".join(reasons)}
