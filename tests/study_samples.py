"""A made-up run for the tests of the study: stored results in the harness's form, measured by nobody."""

import dataclasses
import json

import numpy as np
import pandas as pd

from sam3lab.bench.accuracy import Accuracy
from sam3lab.bench.case import Case, accuracy_case
from sam3lab.study import gallery, run

SPEED = {
    "transformers": 1.0,
    "pytorch": 0.8,
    "pytorch-compiled": 0.6,
    "onnxruntime": 0.55,
    "openvino": 0.5,
    "sleep": 1.0,
}
PARTS = {"image": 12.0, "text": 1.6, "detect": 6.0}
PRECISIONS = {"fp32": 1.0, "bf16": 1.8, "int8": 0.7}  # and their time
OFFERED = {"onnxruntime": ("int8",), "openvino": ("int8",)}  # all others have bf16
PHRASES = (("cat",), ("black cat on sofa",), ("cat, dog, table",), ("cat", "dog", "table"))
OWN = 252


def cases(device="cpu", backends=tuple(name for name in SPEED if name != "sleep")):
    """Every case that the notebooks ask for by default."""
    common = {"images": ("chelsea",), "device": device}
    made = [Case(backend=name, **common) for name in backends]
    unseen = [accuracy_case(made[0], "compositional", 32)]
    whole = common | {"mode": "pipeline"}  # only the base case is measured end to end
    made += [Case(backend=name, precision=p, **whole) for name in backends for p in OFFERED.get(name, ("bf16",))]
    made += [accuracy_case(case, scenes=32) for case in made] + [Case(replica=1, **common)] + unseen
    made += [Case(backend=name, resolution=side, **whole) for name in backends for side in (126, 378)]
    common["mode"] = "model"
    return made + [Case(backend=name, prompts=texts, **common) for name in backends for texts in PHRASES[1:]]


def accuracy(case):
    """(stage, phase, metric, unit, values) of an accuracy case: int8 is a little worse."""
    values = {field.name: 7 for field in dataclasses.fields(Accuracy)} | {"scenes": case.split[1]}
    cgf1 = 91.0 - 2.0 * (case.precision == "int8")
    values |= {"cgf1": cgf1, "cgf1_low": cgf1 - 3, "cgf1_high": cgf1 + 3, "ap": 0.8, "ap_low": 0.75, "ap_high": 0.85}
    return [(case.split[0], "accuracy", name, "", [value]) for name, value in values.items()]


def fails(case, failed) -> bool:
    """Whether parity fails: for backends in `failed`, and for the detections of int8."""
    return case.backend in failed or (case.precision == "int8" and case.mode == "accuracy")


def is_reference(case) -> bool:
    return case.backend == "transformers" and case.precision == "fp32" and not case.replica


def frame(cases, rounds=3, samples=12, failed=()):
    """Rows as results.load gives them; the outputs of backends in `failed` are not those of native PyTorch."""
    lines = []
    for case in cases:
        if case.mode == "accuracy":
            lines += [_line(case, 0, *row, 0) for row in ((*row[:4], row[4][0]) for row in accuracy(case))]
            continue
        pace = SPEED.get(case.backend, 1) * PRECISIONS[case.precision]
        size, prompts = (case.resolution / OWN) ** 1.6, len(case.prompts)
        parts = {
            "image": PARTS["image"] * size,
            "text": PARTS["text"] * prompts,
            "detect": PARTS["detect"] * size * prompts,
        }
        wholes = {"pipeline": sum(parts.values()), "pipeline_cached": parts["image"] + parts["detect"]}
        wholes |= {"end_to_end": wholes["pipeline"] + 15} if case.mode == "speed" else {}
        rng = np.random.default_rng(int(case.id, 16))
        for number in range(rounds):
            drift = rng.normal(1, 0.01)
            rows = [
                (
                    stage,
                    "steady",
                    "wall",
                    "ms",
                    value * pace * drift * rng.normal(1, 0.01, samples),
                )
                for stage, value in (parts | wholes).items()
            ]
            rows.append(("process", "load", "startup", "s", [2.0 * drift]))
            rows += [
                ("process", "memory", metric, "MB", [value * SPEED.get(case.backend, 1)])
                for metric, value in (
                    ("rss", 400.0),
                    ("rss_peak", 450.0 + case.resolution),
                    ("rss_peak_startup", 500.0),
                )
                + ((("gpu", 300.0), ("gpu_peak", 300.0 + case.resolution)) if case.device == "cuda" else ())
            ]
            for stage, phase, metric, unit, values in rows:
                for index, value in enumerate(values):
                    lines.append(_line(case, number, stage, phase, metric, unit, value, index))
    rows = pd.DataFrame(lines)
    for name in ("prompts", "images"):
        rows[name] = rows[name].map(tuple)
    states = {case.id: "failed" if fails(case, failed) else "passed" for case in cases}
    states |= {case.id: "reference" for case in cases if is_reference(case)}
    rows["parity"] = rows["case"].map(states)
    return rows


def _line(case, round_, stage, phase, metric, unit, value, sample):
    about = {"run_id": "made-up", "case": case.id, "label": case.label, "round": round_, "stage": stage}
    return (
        about
        | {"phase": phase, "metric": metric, "unit": unit, "value": float(value), "sample": sample}
        | case.to_json()
    )


def store(directory, cases, failed=(), notebooks=None):
    """Write a directory that results.load and `sam3lab figures` read, as `sam3lab study --publish` does."""
    directory.mkdir(parents=True, exist_ok=True)
    rows = frame(cases, failed=failed)
    for name in ("prompts", "images"):
        rows[name] = rows[name].map(list)
    rows.drop(columns="parity").to_parquet(directory / "results.parquet", index=False)
    compared = [
        {
            "case": case.id,
            "label": case.label,
            "reference": next(other.id for other in cases if is_reference(other) and other.inputs_id == case.inputs_id),
            "backend": case.backend,
            "precision": case.precision,
            "output": output,
            "cosine": 1.0,
            "relative_error": 0.5 if case.backend in failed else 3e-6,
            "max_abs": 1e-5,
            "expected": 4.0 if output in ("detections", "split") else np.nan,
            "matched": 4.0 if output in ("detections", "split") else np.nan,
            "mask_iou_min": 1.0,
            "mask_iou_mean": 1.0,
            "box_iou_min": 1.0,
            "score_difference": 0.0,
            "passed": not fails(case, failed),
            "reason": "scores differ by 0.02, over 0.01" if fails(case, failed) else "",
        }
        for case in cases
        for output in (("split",) if case.mode == "accuracy" else ("logits", "masks", "detections"))
    ]
    pd.DataFrame(compared).to_parquet(directory / "parity.parquet", index=False)
    skipped = Case(backend="tensorrt", images=("chelsea",), device=cases[0].device)
    columns = {"case": skipped.id, "label": skipped.label, "round": 0, "status": "skipped", "log": None}
    pd.DataFrame([columns | {"reason": "there is no NVIDIA driver"} | skipped.to_json()]).to_parquet(
        directory / "failures.parquet", index=False
    )
    environment = {
        "cpu": "A processor",
        "threads": 2,
        "ram_gb": 8,
        "gpu": None,
        "python": "3.12.0",
        "version_torch": "2.0",
    }
    if cases[0].device == "cuda":
        environment["gpu"] = "A GPU"
    (directory / "environment.json").write_text(json.dumps(environment))
    device = cases[0].device
    ends = {"value": 100.0, "low": 98.0, "high": 101.0}
    matmul = {"ceiling": "matmul", "precision": "fp32", "unit": "GFLOP/s", "size": 1536, "samples": 9} | ends
    facts = {f"native.{cases[0].checkpoint}": OWN, f"flops.{cases[0].checkpoint}.{OWN}": 4e8}
    facts |= {f"ceilings.{device}": [matmul], "harness": {"value": 1e-3, "low": 8e-4, "high": 2e-3}}
    facts |= {f"size.{case.id}": 8_000_000 if case.precision == "int8" else 25_000_000 for case in cases}
    scored = [case for case in cases if case.mode == "accuracy"]
    facts["gallery"] = gallery.collect(directory, scored)  # there are no predictions: the truth alone
    for row in facts["gallery"]:
        row["found"] = [{"backend": case.backend, "precision": case.precision, "masks": []} for case in scored[:7]]
    for notebook in notebooks or run.names():
        known = run.defaults(notebook)
        facts[f"parameters.{notebook}"] = known | ({"device": device} if "device" in known else {})
    (directory / "facts.json").write_text(json.dumps(facts))
    return directory
