"""A made-up run for the tests of the study: stored results in the harness's form, measured by nobody."""

import dataclasses
import json

import nbformat
import numpy as np
import pandas as pd

from sam3lab import paths, prompts
from sam3lab.bench.accuracy import Accuracy
from sam3lab.bench.case import Case, accuracy_case
from sam3lab.study import deployment, gallery, presets, run, serving, serving_store

SPEED = {
    "transformers": 1.0,
    "pytorch": 0.8,
    "pytorch-compiled": 0.6,
    "onnxruntime": 0.55,
    "openvino": 0.5,
    "sleep": 1.0,
    "onnxruntime-unoptimised": 1.1,
    "onnxruntime-basic": 0.66,
    "meta": 0.9,
    "meta-compiled": 0.7,
}
PARTS = {"image": 12.0, "text": 1.6, "detect": 6.0}
ON_CPU = {"fp32": 1.0, "bf16": 1.8, "int8": 0.7}  # precisions, and their time
ON_GPU = {"fp32": 1.0, "tf32": 0.5, "bf16": 0.25, "fp16": 0.25}
OFFERED = {"onnxruntime": ("int8",), "openvino": ("int8",)}  # all others have bf16
PHRASES = (("cat",), ("black cat on sofa",), ("cat, dog, table",), ("cat", "dog", "table"))
WORDS = [prompt.text for prompt in prompts.by_kind("word")]
OWN = {"sam3-nano": 252, "sam3": 1008, "sam3-huge": 1008}
GPU_ROWS = [("transformers", each) for each in ("fp32", "fp16", "bf16")]
GPU_ROWS += [(name, "fp16") for name in ("pytorch", "pytorch-compiled", "onnxruntime")]
GPU_ROWS += [("meta", "bf16"), ("meta-compiled", "bf16")]
NVIDIA = ("transformers", "pytorch-compiled", "onnxruntime")  # what most notebooks compare on a GPU


def cases(device="cpu", backends=("transformers", "pytorch", "pytorch-compiled", "onnxruntime", "openvino")):
    """Every case that the notebooks ask for by default, with sam3-nano in fp32."""
    common = {"images": ("chelsea",), "device": device}
    made = [Case(backend=name, **common) for name in backends]
    unseen = [accuracy_case(made[0], "compositional", 32)]
    whole = common | {"mode": "pipeline"}  # only the base case is measured end to end
    made += [Case(backend=name, precision=p, **whole) for name in backends for p in OFFERED.get(name, ("bf16",))]
    made += [accuracy_case(case, scenes=32) for case in made] + [Case(replica=1, **common)] + unseen
    made += [Case(backend=name, resolution=side, **whole) for name in backends for side in (126, 378)]
    few = [name for name in backends if name in presets.OWN["cpu"]["06_calls"]["backends"]]
    made += [Case(backend=name, batch=4, **whole) for name in few]
    made += [Case(backend=name, **common | {"mode": "cold"}) for name in backends]
    common["mode"] = "model"
    return made + [Case(backend=name, prompts=texts, **common) for name in backends for texts in PHRASES[1:]]


def gpu_cases():
    """Every case that the notebooks ask for by default on a GPU, but for TensorRT's, which are not run."""
    common = {"checkpoint": "sam3", "resolution": 1008, "images": ("chelsea",), "device": "cuda"}
    whole, stages = common | {"mode": "pipeline"}, common | {"mode": "model"}
    rows = [{"backend": backend, "precision": precision} for backend, precision in GPU_ROWS]
    made = [Case(**row, **common) for row in rows] + [Case(**rows[1], replica=1, **common)]
    made += [Case(**row, **whole | {"checkpoint": "sam3-huge"}) for row in rows[:2]]
    lower = ("onnxruntime-unoptimised", "onnxruntime-basic")  # a third level failed
    made += [Case(backend=name, precision="fp16", **whole) for name in lower]
    resized = [row for row in rows if row["backend"] in NVIDIA and row["precision"] != "bf16"]
    made += [Case(**row, **whole | {"resolution": side}) for row in resized for side in (504, 1512)]
    few = [row for row in resized if row["precision"] == "fp16"]
    made += [Case(**row, prompts=texts, **stages) for row in few for texts in PHRASES[1:]]
    lists = [{"prompts": tuple(WORDS[:count])} for count in (2, 4, 8, 16)]
    made += [Case(**row, **whole | several) for row in few for several in lists]
    made += [Case(**row, batch=batch, **whole) for row in few for batch in (4, 8)]
    made += [Case(**row, **common | {"mode": "cold"}) for row in rows if row not in (rows[0], rows[2])]
    others = [(name, each) for name in NVIDIA for each in ON_GPU if (name, each) not in GPU_ROWS]
    precise = [Case(backend=name, precision=each, **whole) for name, each in others]
    small = {"checkpoint": "sam3-nano", "resolution": 252}
    scored = [dataclasses.replace(case, **small) for case in [*made[:6], *precise]]
    unseen = accuracy_case(scored[0], "compositional", 32)
    return [*made, *precise, *(accuracy_case(case, scenes=32) for case in scored), unseen]


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
    return case.backend == "transformers" and case.precision == "fp32" and not case.replica and case.mode != "cold"


def measured(case, drift, rng, samples):
    """(stage, phase, metric, unit, values) of one round of a case."""
    pace = SPEED.get(case.backend, 1) * (ON_GPU if case.device == "cuda" else ON_CPU)[case.precision]
    pace *= 1.5 if case.checkpoint == "sam3-huge" else 1
    if case.mode == "cold":
        seconds = {"prepare": 20.0, "export": 15.0, "build": 5.0, "load": 2.0, "first": 1.0, "startup": 25.0}
        return [("process", "cold", name, "s", [value * pace * drift]) for name, value in seconds.items()]
    size, count, batch = (case.resolution / OWN[case.checkpoint]) ** 1.6, len(case.prompts), case.batch**0.8
    parts = {
        "image": PARTS["image"] * size * batch,
        "text": PARTS["text"] * count,
        "detect": PARTS["detect"] * size * count * batch,
    }
    wholes = {"pipeline": sum(parts.values()), "pipeline_cached": parts["image"] + parts["detect"]}
    wholes |= {"end_to_end": wholes["pipeline"] + 15} if case.mode == "speed" else {}
    times = wholes if case.mode == "pipeline" else parts | wholes
    rows = [
        (stage, "steady", "wall", "ms", value * pace * drift * rng.normal(1, 0.01, samples))
        for stage, value in times.items()
    ]
    rows += [("process", "load", "startup", "s", [2.0 * drift]), ("pipeline", "first", "wall", "ms", [30.0 * drift])]
    memory = {"rss": 400.0, "rss_peak": 450.0 + case.resolution, "rss_peak_startup": 500.0}
    if case.device == "cuda":
        memory |= {"gpu": 300.0, "gpu_peak": 300.0 + case.resolution}
        state = {"energy": ("J", 5.0 * pace), "clock_sm": ("MHz", 1900), "power": ("W", 500), "temperature": ("C", 50)}
        state["limited"] = ("1", 0.5 if case.backend == "onnxruntime" else 0)
        rows += [("pipeline", "steady", name, unit, [value * drift]) for name, (unit, value) in state.items()]
        rows += [("pipeline", "disturbed", "wall", "ms", [50 * times["pipeline"] * pace])]  # which does not count
        rows += [(stage, "steady", "slowed", "1", [float(stage == "detect")]) for stage in ("detect", "pipeline")]
    return rows + [("process", "memory", name, "MB", [v * SPEED.get(case.backend, 1)]) for name, v in memory.items()]


def frame(cases, rounds=3, samples=12, failed=()):
    """Rows as results.load gives them; the outputs of backends in `failed` are not those of native PyTorch."""
    lines = []
    for case in cases:
        rng = np.random.default_rng(int(case.id, 16))
        once = case.mode == "accuracy"
        for number in range(1 if once else rounds):
            rows = accuracy(case) if once else measured(case, rng.normal(1, 0.01), rng, samples)
            for stage, phase, metric, unit, values in rows:
                about = {"run_id": "made-up", "case": case.id, "label": case.label, "round": number, "stage": stage}
                about |= {"phase": phase, "metric": metric, "unit": unit} | case.to_json()
                lines += [about | {"value": float(value), "sample": index} for index, value in enumerate(values)]
    rows = pd.DataFrame(lines)
    for name in ("prompts", "images"):
        rows[name] = rows[name].map(tuple)
    states = {case.id: "failed" if fails(case, failed) else "passed" for case in cases}
    states |= {case.id: "reference" for case in cases if is_reference(case)}
    rows["parity"] = rows["case"].map(states)
    return rows


def store(directory, cases, failed=(), notebooks=None):
    """Write a directory that results.load and `sam3lab figures` read, as `sam3lab study --publish` does."""
    directory.mkdir(parents=True, exist_ok=True)
    rows = frame(cases, failed=failed)
    for name in ("prompts", "images"):
        rows[name] = rows[name].map(list)
    rows.drop(columns="parity").to_parquet(directory / "results.parquet", index=False)
    references = {case.inputs_id: case.id for case in cases if is_reference(case)}
    compared = [
        {
            "case": case.id,
            "label": case.label,
            "reference": references.get(case.inputs_id, "one that keeps its outputs alone"),
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
            "score_difference": 0.02 if fails(case, failed) else 0.0,
            "passed": not fails(case, failed),
            "reason": "scores differ by 0.02, over 0.01" if fails(case, failed) else "",
        }
        for case in cases
        for output in (("split",) if case.mode == "accuracy" else ("logits", "masks", "detections"))
    ]
    pd.DataFrame(compared).to_parquet(directory / "parity.parquet", index=False)
    skipped = [dataclasses.replace(case, backend="tensorrt") for case in cases if case.backend == "onnxruntime"]
    columns = {"round": 0, "status": "skipped", "log": None, "reason": "the package tensorrt is not installed"}
    missing = [columns | {"case": case.id, "label": case.label} | case.to_json() for case in skipped or cases[:1]]
    pd.DataFrame(missing).to_parquet(directory / "failures.parquet", index=False)
    device = cases[0].device
    environment = {"cpu": "A processor", "threads": 2, "ram_gb": 8, "gpu": None, "python": "3.12.0"}
    environment |= {"version_torch": "2.0", "collected": "2026-01-01"} | ({"gpu": "A GPU"} if device == "cuda" else {})
    (directory / "environment.json").write_text(json.dumps(environment))
    known = facts(directory, cases, run.names() if notebooks is None else notebooks)
    (directory / "facts.json").write_text(json.dumps(known))
    for given in [known[key] for key in known if key == "parameters.08_serving"]:
        there = {(case.backend, case.precision) for case in cases if case.mode == "speed"}
        store_serving(
            directory, given, [row for row in presets.rows(given["backends"], given["precision"]) if row in there]
        )
    return directory


def served(plan):
    """{experiment: its records} of a service that takes 20 ms a request, at most 50 a second, and 80 with batching."""
    rng, pace = np.random.default_rng(5), SPEED.get(plan.backend, 1)

    def request(condition, place=0, latency=20.0, **more):
        stages = {"image": 12.0, "text": 1.6, "detect": 3.0} if latency < 1000 else {}
        known = {"condition": condition, "place": place, "status": 200, "latency": latency * pace * rng.normal(1, 0.03)}
        return (
            known | {name: value * pace for name, value in stages.items()} | {"engine": plan.backend, "batch": 1} | more
        )

    def several(condition, **more):
        return [request(condition, place, **more) for place in range(plan.requests)]

    def loads(most):
        seconds, closed = plan.seconds, []
        for place in range(int(seconds * most / pace)):
            closed.append(request("capacity", seconds=seconds, at=max(0.0, (place + 1) * pace / most - 0.03)))
        offered = []
        for load in plan.loads:
            rate = load * 50 / pace
            for place in range(int(seconds * rate)):
                known = {"load": load, "rate": rate, "seconds": seconds, "at": place / rate, "batch": 2}
                late = max(0.0, place / rate * (load * 50 / most - 1)) * 1000
                refused = {"status": 429, "engine": ""} if late > 600 else {}
                offered.append(request("load", latency=20 + late, **known) | refused)
        return closed + offered

    calls = {"neither": (1, 1, 20.0), "prompt": (1, 0, 19.0), "image": (0, 1, 8.0), "both": (0, 0, 6.0)}
    caches = []
    for condition, (image, text, latency) in calls.items():
        caches += several(condition, latency=latency, image_calls=image, text_calls=text)
    listed = [("phrase", 21.0, {"found": 2}), ("several", 30.0, {"found": 3})]
    judged = {"expected": 3, "extra": 0}
    own = judged if plan.scored == plan.checkpoint else {}
    lists = [
        each for name, time, found in listed for each in several(name, latency=time, **(own | found if own else {}))
    ]
    if not own:
        lists += [each for name, _, found in listed for each in several(name, event="scored", **judged, **found)]
    hit = [request("fault", rate=15, seconds=12.0, at=at / 15) for at in range(180)]
    for each in hit:
        if 2 <= each["at"] < 8:
            each |= {"engine": "openvino", "reason": "it was ended by SIGKILL"}
    hit[30] |= {"status": 503, "engine": ""}
    events = [("killed", 2.0), ("away", 2.1), ("back", 8.0)]
    return {
        "cold": [request("cold", latency=30_000.0)],
        "process": [request("process", place, latency=2_500.0) for place in range(plan.rounds)],
        "start": [request("cached", place, latency=3_500.0) for place in range(plan.rounds)] + several("preloaded"),
        "caches": caches,
        "list": lists,
        "single": loads(50),
        "batched": loads(80),
        "fault": hit + [{"condition": "event", "event": event, "at": at} for event, at in events],
    }


def store_serving(directory, given, rows, failed=()):
    """Write made-up records of the serving experiments as a run keeps them, and as published; `failed` could not be made."""
    for row in rows:
        plan = serving.plan(given, OWN[given["checkpoint"]], "sam3-nano", row)
        for name, records in served(plan).items():
            kept = [] if name in failed else records
            serving_store.keep(directory, plan.key(name), plan.definition(name), lambda kept=kept: kept)
    serving_store.consolidate(directory, directory)


def execute(tasks, run_dir):
    """run.execute in this process: without kernels, which take longer to start than most notebooks to run."""
    for notebook, given in tasks.items():
        scope = {}
        for cell in nbformat.read(paths.NOTEBOOKS / f"{notebook}.ipynb", as_version=4).cells:
            if cell.cell_type == "code":
                exec(compile(cell.source, f"{notebook}, {cell.id}", "exec"), scope)
            scope |= given if "parameters" in cell.metadata.get("tags", ()) else {}
    return []


def facts(directory, cases, notebooks):
    """What the notebooks find out once: ceilings, floors, sizes, deployment, the gallery, their own parameters."""
    device, checkpoint = cases[0].device, cases[0].checkpoint
    ends = {"value": 100.0, "low": 98.0, "high": 101.0, "samples": 9}
    highest = [{"ceiling": "copy", "precision": "bytes", "unit": "GB/s", "size": 2**27, "library": "torch"} | ends]
    for each in ON_GPU if device == "cuda" else ("fp32", "bf16"):
        highest.append(
            {"ceiling": "matmul", "precision": each, "unit": "GFLOP/s", "size": 1536, "library": "torch"} | ends
        )
    known = {f"native.{name}": side for name, side in OWN.items()} | {f"ceilings.{device}": highest}
    known |= {f"flops.{checkpoint}.{OWN[checkpoint]}": 4e8, "harness": {"value": 1e-3, "low": 8e-4, "high": 2e-3}}
    known |= {f"size.{case.id}": 8_000_000 if case.precision == "int8" else 25_000_000 for case in cases}
    floor = {stage: value / 8 for stage, value in PARTS.items()} | {"pipeline": sum(PARTS.values()) / 8}
    known |= {f"floor.{case.id}": floor for case in cases if case.mode == "speed"}
    counted = {column: 7 for column in deployment.RESPECTS}
    names = dict.fromkeys(case.backend for case in cases)
    known["deployment"] = [counted | {"backend": name, "steps": 2 + place} for place, name in enumerate(names)]
    scored = [case for case in cases if case.mode == "accuracy"]
    known["gallery"] = gallery.collect(directory, scored) if scored else []  # there are no predictions: the truth alone
    for row in known["gallery"]:
        row["found"] = [{"backend": case.backend, "precision": case.precision, "masks": []} for case in scored[:7]]
    for notebook in notebooks:
        asked = {name: value for name, value in run.defaults(notebook).items()}
        known[f"parameters.{notebook}"] = presets.resolved(
            notebook, asked, {"device": device, "checkpoint": checkpoint}
        )
    return known
