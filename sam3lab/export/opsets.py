"""Which opset each runtime takes, and how fast it then runs: `python -m sam3lab.export.opsets` writes data/opsets.csv.

One row an opset, runtime and stage: whether it takes the graph, why not, and the median time of a call relative to the
lowest opset's in the same interleaved run. TensorRT's rows say whether its builder makes an engine; they hold no time.
"""

import csv
import statistics
import sys
import time

import numpy as np

from sam3lab.export import engine_profiles
from sam3lab.export.cache import graphs
from sam3lab.export.onnx import INPUTS, OPSETS
from sam3lab.model.checkpoint import image_size, resolve
from sam3lab.paths import DATA

ROUNDS = 40


def onnxruntime_call(path, feed):
    """A function that runs the graph once under ONNX Runtime."""
    import onnxruntime as ort

    ort.set_default_logger_severity(4)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, feed)


def openvino_call(path, feed):
    """A function that runs the graph once under OpenVINO, in float32."""
    import openvino

    request = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
    return lambda: request.infer(feed)


def tensorrt_call(path, feed):
    """None, after TensorRT's builder has made an engine of the graph."""
    from sam3lab.export import engine_builder

    profile = dict.fromkeys(engine_profiles.AXES, (1, 1, 4))
    engine_builder.build(path, INPUTS[path.stem], engine_builder.Options(profiles=(profile,)))


def main(checkpoint: str = "sam3-nano") -> None:
    """Measure every opset on a checkpoint, on this machine's CPU."""
    directory = resolve(checkpoint)
    resolution = image_size(directory)
    random = np.random.default_rng(0)
    values = {
        "pixels": random.integers(0, 256, (1, 3, resolution, resolution), dtype=np.uint8),
        "ids": random.integers(0, 1000, (1, 32)),
        "mask": np.arange(32)[None] < 5,
        "image_index": np.zeros(1, dtype=np.int64),
        "text_index": np.zeros(1, dtype=np.int64),
    }
    exported = {opset: graphs(directory, resolution, "fp32", opset) for opset in OPSETS}
    *levels, text = (session_outputs(exported[OPSETS[0]], stage, values) for stage in ("image", "text"))
    values |= dict(zip(("features_4x", "features_2x", "features_1x"), levels[0], strict=True), text_features=text[0])

    rows = []
    for runtime, make in (("onnxruntime", onnxruntime_call), ("openvino", openvino_call), ("tensorrt", tensorrt_call)):
        for stage, names in INPUTS.items():
            feed, calls, notes = {name: values[name] for name in names}, {}, {}
            for opset, path in exported.items():
                try:
                    calls[opset] = make(path / f"{stage}.onnx", feed)
                    if calls[opset]:
                        calls[opset]()
                except Exception as error:  # each runtime has exceptions of its own
                    calls.pop(opset, None)
                    notes[opset] = " ".join(str(error).split())[-160:]
            times = interleaved({opset: call for opset, call in calls.items() if call})
            for opset in OPSETS:
                ratio = times[opset] / times[min(times)] if opset in times else None
                takes = "yes" if opset in calls else "no"
                rows.append([opset, runtime, stage, takes, ratio and f"{ratio:.2f}", notes.get(opset, "")])
                print(*rows[-1], sep="\t")
    with (DATA / "opsets.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["opset", "runtime", "stage", "takes", "relative_time", "note"], *rows])


def session_outputs(directory, stage: str, values: dict) -> list:
    """What a stage computes under ONNX Runtime, to feed the next one."""
    return onnxruntime_call(directory / f"{stage}.onnx", {name: values[name] for name in INPUTS[stage]})()


def interleaved(calls: dict) -> dict:
    """Median seconds of each call over rounds that take them in turn."""
    samples = {key: [] for key in calls}
    for _ in range(ROUNDS):
        for key, call in calls.items():
            start = time.perf_counter()
            call()
            samples[key].append(time.perf_counter() - start)
    return {key: statistics.median(times) for key, times in samples.items()}


if __name__ == "__main__":
    main(*sys.argv[1:])
