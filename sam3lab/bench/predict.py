"""One accuracy case: what a backend finds in the scenes of a stored split, and how right it is.

The predictions are a file of COCO results, with mask run lengths, one entry a detection (see bench.coco): any evaluator
of that format can score it against the ground truth, which lies beside it. With pycocotools:

    truth = COCO("predictions/truth-test.json")
    COCOeval(truth, truth.loadRes("predictions/<case>.json"), "segm")
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from sam3lab import atomic, backends
from sam3lab.backends.base import Backend, RawOutputs
from sam3lab.bench import artifacts
from sam3lab.bench.case import Case
from sam3lab.bench.scene_inputs import SceneInputs

SCORE = 0.05  # far under the 0.5 of a detection: average precision and parity look at what nearly is one, too
POINTS = ("cgf1", "cgf1_low", "cgf1_high")  # in 0..100, the other measures are fractions


def answer(case: Case, job: dict[str, Any]) -> dict[str, Any]:
    """Load, go over the scenes, write the predictions to the job's `outputs` and score them by its `truth`: the
    measurements and facts that a worker answers with. A measurement's stage is the split's name.
    """
    from sam3lab.bench.accuracy import Accuracy, evaluate

    inputs, resolution = SceneInputs.load(Path(job["inputs"])), case.resolution
    backend = backends.get(case.backend)()
    backend.load(artifacts.from_json(job["artifacts"]))
    found = predictions(backend, inputs, resolution)
    backend.close()
    atomic.write(Path(job["outputs"]), json.dumps(found).encode())
    scored = dataclasses.asdict(evaluate(job["truth"], found))
    kinds = {field.name: field.type for field in dataclasses.fields(Accuracy)}
    scored["scenes"], kinds["scenes"] = len(inputs), int
    measurements = [
        {"stage": case.split[0], "phase": "accuracy", "metric": name, "values": [float(value)]}
        | {"unit": "points" if name in POINTS else "count" if kinds[name] is int else "1"}
        for name, value in scored.items()
    ]
    return {"measurements": measurements, "facts": {"threads": job["artifacts"]["threads"]}}


def predictions(backend: Backend, inputs: SceneInputs, resolution: int) -> list[dict[str, Any]]:
    """COCO results of every pair: one scene with its prompts a call, masks at the size of the scene's image.

    A backend that compiles for each shape gets a scene's prompts one by one, as it is called elsewhere.
    """
    from sam3lab import images
    from sam3lab.bench.coco import predictions as to_coco
    from sam3lab.postprocess import detections

    records = []
    for scene, size in enumerate(inputs.sizes.tolist()):
        own = np.flatnonzero(inputs.scene == scene)
        pixels = images.pixels(images.decode(inputs.file(scene)), resolution)[None]
        features = backend.image(backend.upload(pixels))
        for part in np.array_split(own, len(own)) if getattr(backend, "compiles", False) else [own]:
            index = np.zeros(len(part), dtype=np.int64), np.arange(len(part))
            mask = backend.upload(inputs.mask[part])
            text = backend.text(backend.upload(inputs.ids[part]), mask)
            raw = backend.detect(features, text, mask, *map(backend.upload, index))
            found = detections(RawOutputs(*backend.download(tuple(raw))), size, SCORE)
            records += to_coco(inputs.pair[part], found)
    return records
