"""The model repository for Triton: its configurations are Triton's protobuf and say what the graphs are, its graphs give
what the exported ones give, and the Python back end's models serve on a real tritonserver."""

import argparse
import json
import re
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from sam3lab import backends
from sam3lab.backends import Artifacts, RawOutputs
from sam3lab.backends.onnxruntime_cuda import DISABLED
from sam3lab.cli import main
from sam3lab.errors import UserError
from sam3lab.export import cache
from sam3lab.export.onnx import ORT_CUDA, OUTPUTS
from sam3lab.images import pixels
from sam3lab.model.tokenizer import load_tokenizer
from sam3lab.paths import DATA
from sam3lab.scenes.store import load_split
from sam3lab.segment import segment
from sam3lab.serve.triton import config, graphs, python_model, readme, repository, signature, stages
from sam3lab.serve.triton.settings import PRECISIONS, Settings
from sam3lab.serve.triton.signature import OPEN, STAGES, Tensor
from tests import triton_server
from tests.cuda_operators import in_standard_operators
from tests.test_serve_engine import until
from tests.triton_server import TritonServer

triton = pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed")
from google.protobuf import text_format  # noqa: E402 (comes with tritonclient)
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelInstanceGroup  # noqa: E402
from tritonclient.utils import InferenceServerException  # noqa: E402

NANO, SIDE = DATA / "checkpoints" / "sam3-nano", 252
MODELS = ["sam3_image", "sam3_text", "sam3_detect"]
FEATURES = ("features_4x", "features_2x", "features_1x")


def read(directory, name):
    return text_format.Parse((directory / name / "config.pbtxt").read_text(), ModelConfig())


def tensors(values):
    return tuple(Tensor(each.name, DataType.Name(each.data_type), tuple(each.dims)) for each in values)


def channels_first(value):
    """The signature of maps [h,w,C] as that of [C,h,w]; others as they are."""
    return value._replace(dims=(value.dims[2], *value.dims[:2])) if value.name in FEATURES else value


def settings(**changes):
    return Settings(**{"checkpoint": NANO, "name": "sam3-nano", "resolution": SIDE} | changes)


@pytest.fixture(scope="module")
def onnxruntime_repository(tmp_path_factory):
    target = tmp_path_factory.mktemp("onnxruntime") / "models"
    repository.write(target, settings(max_batch=6, queue=5, queue_delay=0.004, threads=2, instances=3))
    return target


@pytest.fixture(scope="module")
def requests():
    """(pixels, ids, mask) of three requests that have 1, 3 and 1 images, with 2, 1 and 3 prompts to an image."""
    scenes, tokenizer = load_split("test"), load_tokenizer(NANO)
    values = []
    for images, prompts in ((1, 2), (3, 1), (1, 3)):
        chosen = [scenes.pop() for _ in range(images)]
        texts = [
            tokenizer.encode([*(p.text for p in scene.prompts), "circle", "red star"][:prompts]) for scene in chosen
        ]
        ids, mask = (np.stack(each) for each in zip(*texts, strict=True))
        values.append((np.stack([pixels(scene.image, SIDE) for scene in chosen]), ids, mask))
    return values


@pytest.fixture(scope="module")
def backend():
    runner = backends.get("pytorch")()
    runner.load(Artifacts(NANO, SIDE, threads=1))
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def expected(backend, requests):
    """What the backend finds for each request, computed pair by pair."""
    return [detections_of(backend, *request) for request in requests]


def detections_of(backend, images, ids, mask):
    rows = []
    for image, image_ids, image_mask in zip(images, ids, mask, strict=True):
        features = backend.image(backend.upload(image[None]))
        for each in range(len(image_ids)):
            one_mask = backend.upload(image_mask[each][None])
            text = backend.text(backend.upload(image_ids[each][None]), one_mask)
            index = backend.upload(np.zeros(1, np.int64))
            rows.append(backend.download(tuple(backend.detect(features, text, one_mask, index, index))))
    parts = (np.concatenate(part) for part in zip(*rows, strict=True))
    return RawOutputs(*(part.reshape(*ids.shape[:2], *part.shape[1:]) for part in parts))


def assert_close(found, wanted, tolerance=1e-5):
    """Within `tolerance` of the greatest value, field by field."""
    for name, one, other in zip(OUTPUTS["detect"], found, wanted, strict=True):
        assert one.shape == other.shape, name
        assert np.abs(one - other).max() <= tolerance * np.abs(other).max(), name


# Configurations


def test_a_repository_has_all_that_triton_reads(onnxruntime_repository):
    files = {str(path.relative_to(onnxruntime_repository)) for path in onnxruntime_repository.rglob("*")}
    models = {f"{model}/{file}" for model in MODELS for file in ("config.pbtxt", "1", "1/model.onnx")}
    assert files == {"README.md", *MODELS, *models, "sam3", "sam3/config.pbtxt", "sam3/1"}


@pytest.mark.parametrize("stage", STAGES)
def test_a_configuration_says_what_the_graph_takes_and_gives(onnxruntime_repository, stage):
    """Against ONNX Runtime's own reading of the graph, not ours."""
    ort = pytest.importorskip("onnxruntime")
    written = read(onnxruntime_repository, f"sam3_{stage}")
    session = ort.InferenceSession(
        onnxruntime_repository / f"sam3_{stage}" / "1" / "model.onnx", providers=["CPUExecutionProvider"]
    )
    kinds = {"float": "FP32", "uint8": "UINT8", "int64": "INT64", "bool": "BOOL"}

    def of(values):
        return tuple(
            Tensor(
                value.name,
                "TYPE_" + kinds[value.type.removeprefix("tensor(").removesuffix(")")],
                tuple(size if isinstance(size, int) else OPEN for size in value.shape[1:]),
            )
            for value in values
        )

    assert all(value.shape[0] == "images" for value in (*session.get_inputs(), *session.get_outputs()))
    assert tensors(written.input) == of(session.get_inputs())
    assert tensors(written.output) == of(session.get_outputs())


def test_settings_are_in_every_stage_s_configuration(onnxruntime_repository):
    for model in MODELS:
        written = read(onnxruntime_repository, model)
        assert (written.name, written.backend, written.default_model_filename) == (model, "onnxruntime", "model.onnx")
        assert written.max_batch_size == 6
        assert written.version_policy.latest.num_versions == 1
        (group,) = written.instance_group
        assert (group.kind, group.count) == (ModelInstanceGroup.KIND_CPU, 3)
        assert list(written.dynamic_batching.preferred_batch_size) == [3, 6]
        assert written.dynamic_batching.max_queue_delay_microseconds == 4000
        policy = written.dynamic_batching.default_queue_policy
        assert policy.max_queue_size == 5
        assert policy.default_timeout_microseconds == 30_000_000
        assert policy.timeout_action == policy.REJECT
        assert [warmup.batch_size for warmup in written.model_warmup] == [1, 6]
        for warmup in written.model_warmup:
            assert warmup.inputs.keys() == {value.name for value in written.input}
            for value in written.input:
                given = warmup.inputs[value.name]
                assert given.data_type == value.data_type
                assert list(given.dims) == [1 if size == OPEN else size for size in value.dims]
        assert written.parameters["intra_op_thread_count"].string_value == "2"
        assert not any(value.allow_ragged_batch for value in written.input)


def test_the_ensemble_joins_the_stages(onnxruntime_repository):
    whole = read(onnxruntime_repository, "sam3")
    parts = {name: read(onnxruntime_repository, name) for name in MODELS}
    assert whole.platform == "ensemble" and whole.max_batch_size == 6
    known = {value.name: value for value in tensors(whole.input)}
    assert known.keys() == {"pixels", "ids", "mask"}
    assert [step.model_name for step in whole.ensemble_scheduling.step] == MODELS
    for step in whole.ensemble_scheduling.step:
        part = parts[step.model_name]
        assert step.model_version == -1
        assert step.input_map.keys() == {value.name for value in part.input}
        assert step.output_map.keys() == {value.name for value in part.output}
        for value in tensors(part.input):  # all there by now, with the type and shape that the stage wants
            assert known[step.input_map[value.name]] == value._replace(name=step.input_map[value.name])
        known |= {step.output_map[value.name]: value for value in tensors(part.output)}
    assert [value.name for value in whole.output] == OUTPUTS["detect"]
    assert all(known[value.name] == value for value in tensors(whole.output))


@pytest.mark.parametrize(("precision", "tf32"), [("fp32", "0"), ("tf32", "1")])
def test_on_a_gpu_tf32_is_what_the_precision_says(precision, tf32):
    wanted = settings(device="cuda", precision=precision)
    for stage, known in signature.of_checkpoint(NANO, SIDE).items():
        written = config.stage(stage, known, wanted)
        (accelerator,) = written.optimization.execution_accelerators.gpu_execution_accelerator
        assert accelerator.name == "cuda" and dict(accelerator.parameters) == {"use_tf32": tf32}
        assert written.instance_group[0].kind == ModelInstanceGroup.KIND_GPU


def test_tensorrt_s_configuration_says_what_its_graphs_are(tmp_path):
    pytest.importorskip("tensorrt")
    wanted = settings(backend="tensorrt", device="cuda", precision="fp16", max_batch=4, max_prompts=3)
    repository.write(tmp_path / "models", wanted)
    exported = cache.graphs(NANO, SIDE, "fp16-mixed")
    for stage in STAGES:
        written = read(tmp_path / "models", f"sam3_{stage}")
        graphs.write(exported / f"{stage}.onnx", stage, tmp_path / f"{stage}.onnx")
        known = signature.of_graph(tmp_path / f"{stage}.onnx")
        assert (tensors(written.input), tensors(written.output)) == known
        assert (written.backend, written.default_model_filename) == ("tensorrt", "model.plan")
        assert (tmp_path / "models" / f"sam3_{stage}" / "1" / "model.plan").stat().st_size > 10**6
    assert {value.type for value in signature.of_graph(tmp_path / "image.onnx").outputs} == {"TYPE_FP16"}


def test_one_image_at_a_time_is_never_waited_for(small_checkpoint):
    known = signature.of_checkpoint(small_checkpoint, 84)["image"]
    written = config.stage("image", known, settings(max_batch=1))
    assert list(written.dynamic_batching.preferred_batch_size) == []
    assert [warmup.batch_size for warmup in written.model_warmup] == [1]


# Graphs


@pytest.mark.parametrize("target", ["portable", ORT_CUDA])
def test_signatures_of_graphs_and_of_the_model_agree(small_checkpoint, tmp_path, target):
    exported = cache.graphs(small_checkpoint, 98, "fp32", target=target)
    for stage, known in signature.of_checkpoint(small_checkpoint, 98).items():
        graphs.write(exported / f"{stage}.onnx", stage, tmp_path / f"{stage}.onnx")
        written = signature.of_graph(tmp_path / f"{stage}.onnx")
        if target == ORT_CUDA:  # whose maps have their channels last
            written = signature.Signature(*(tuple(map(channels_first, values)) for values in written))
        assert written == known


def test_graphs_give_each_image_its_own_prompts(onnxruntime_repository, requests, expected):
    """Images of one request that have different prompts: the indices made inside must not mix them up."""
    ort = pytest.importorskip("onnxruntime")
    run = {
        stage: ort.InferenceSession(
            onnxruntime_repository / f"sam3_{stage}" / "1" / "model.onnx", providers=["CPUExecutionProvider"]
        ).run
        for stage in STAGES
    }
    both = [np.concatenate([requests[0][part], requests[0][part][:, ::-1]]) for part in (1, 2)]
    cases = [(requests[number], expected[number]) for number in (0, 1, 2)]
    cases.append(
        (
            (np.repeat(requests[0][0], 2, axis=0), *both),
            RawOutputs(*(np.concatenate([value, value[:, ::-1]]) for value in expected[0])),
        )
    )
    for (images, ids, mask), wanted in cases:
        (text,) = run["text"](None, {"ids": ids, "mask": mask})
        given = dict(zip(FEATURES, run["image"](None, {"pixels": images}), strict=True))
        found = run["detect"](None, given | {"text_features": text, "mask": mask})
        assert_close(found, wanted, 5e-5)  # another runtime


def test_graphs_for_cuda_give_what_the_portable_ones_do(small_checkpoint, tmp_path):
    ort = pytest.importorskip("onnxruntime")
    random = np.random.default_rng(0)
    images, ids = random.integers(0, 256, (2, 3, 98, 98), np.uint8), random.integers(0, 60, (2, 3, 32))
    mask, found = np.arange(32) < random.integers(4, 32, (2, 3, 1)), []
    for target in ("portable", ORT_CUDA):
        exported, run = cache.graphs(small_checkpoint, 98, "fp32", target=target), {}
        for stage in STAGES:
            graphs.write(exported / f"{stage}.onnx", stage, tmp_path / f"{stage}.onnx")
            graph = in_standard_operators(tmp_path / f"{stage}.onnx")
            run[stage] = ort.InferenceSession(graph, providers=["CPUExecutionProvider"], disabled_optimizers=DISABLED)
        (text,) = run["text"].run(None, {"ids": ids, "mask": mask})
        maps = zip(FEATURES, run["image"].run(None, {"pixels": images}), strict=True)
        found.append(run["detect"].run(None, dict(maps) | {"text_features": text, "mask": mask}))
    assert found[0][0].shape[:2] == (2, 3)
    assert_close(found[1], found[0], 5e-5)


def test_large_weights_stay_beside_the_graph(small_checkpoint, tmp_path, monkeypatch):
    ort = pytest.importorskip("onnxruntime")
    exported = cache.graphs(small_checkpoint, 98, "fp32")
    monkeypatch.setattr(graphs, "INLINE_LIMIT", 0)
    (tmp_path / "1").mkdir()
    graphs.write(exported / "text.onnx", "text", tmp_path / "1" / "model.onnx")
    assert (tmp_path / "1" / "model.onnx.data").exists()
    assert (tmp_path / "1" / "model.onnx").stat().st_size < (exported / "text.onnx").stat().st_size
    session = ort.InferenceSession(tmp_path / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"ids": np.ones((2, 3, 32), np.int64), "mask": np.ones((2, 3, 32), bool)})
    assert found.shape == (2, 3, 32, 32)


def test_a_graph_that_cannot_be_batched_is_refused(tmp_path):
    value = onnx.helper.make_tensor_value_info("pixels", onnx.TensorProto.FLOAT, [2, 3])
    other = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2, 3])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["pixels"], ["y"])], "g", [value], [other])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "fixed.onnx")
    with pytest.raises(UserError, match=r"pixels of .*fixed\.onnx is 2 along its first axis"):
        signature.of_graph(tmp_path / "fixed.onnx")


# Settings and the command


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backend": "openvino"}, "no back end 'openvino'.*onnxruntime, tensorrt, python"),
        ({"backend": "tensorrt"}, "tensorrt runs on cuda, not on 'cpu'"),
        ({"device": "tpu"}, "onnxruntime runs on cpu or cuda, not on 'tpu'"),
        ({"precision": "fp16"}, "onnxruntime on cpu is made for fp32, not for 'fp16'"),
        ({"backend": "python", "runtime": "jax"}, "no runtime 'jax': pytorch, onnxruntime, openvino"),
        ({"backend": "python", "runtime": "openvino", "device": "cuda"}, "openvino runs on the CPU"),
        ({"max_batch": 0}, "max-batch is 0: give at least 1"),
        ({"queue": -1}, "queue is -1"),
        ({"queue_delay": 40.0}, "waits? .*40.0 s for others and 30.0 s in all"),
        ({"queue_timeout": 0.0, "queue_delay": 0.0}, "queue-timeout above 0"),
        ({"queue_delay": float("nan")}, "nan s for others"),
        ({"queue_timeout": float("inf")}, "inf s in all"),
        ({"threads": -2}, "threads is -2"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        settings(**changes)


def test_every_back_end_has_a_precision_that_is_the_command_s_default():
    assert all(
        "fp16" in known if backend == "tensorrt" else "fp32" in known for (backend, _), known in PRECISIONS.items()
    )


def test_the_command_writes_a_whole_repository_or_nothing(tmp_path, capsys, monkeypatch):
    target = tmp_path / "models"
    arguments = [
        "triton-repository",
        "--out",
        str(target),
        "--backend",
        "python",
        "--max-batch",
        "2",
        "--queue-delay",
        "5",
    ]
    monkeypatch.setattr(readme, "text", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(arguments)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "sam3-nano at 252², python fp32 on cpu" in printed and f"{target / 'README.md'}" in printed
    written = read(target, "sam3_text")
    assert written.max_batch_size == 2 and written.dynamic_batching.max_queue_delay_microseconds == 5000
    assert written.parameters["runtime"].string_value == "pytorch"
    assert [value.allow_ragged_batch for value in written.input] == [True, True]
    assert list(tmp_path.iterdir()) == [target]
    assert main(arguments) == 2
    assert "is not an empty directory: name another one" in capsys.readouterr().err


def test_the_command_s_defaults_follow_the_back_end(tmp_path, monkeypatch):
    from sam3lab.serve.triton import cli

    asked = []
    monkeypatch.setattr(repository, "write", lambda target, wanted: asked.append((wanted.precision, wanted.device)))
    for backend in ("onnxruntime", "python", "tensorrt"):
        parser = argparse.ArgumentParser()
        cli.add_arguments(parser)
        cli.run(parser.parse_args(["--out", str(tmp_path), "--backend", backend]))
    assert asked == [("fp32", "cpu"), ("fp32", "cpu"), ("fp16", "cuda")]


def test_a_runtime_for_a_back_end_that_is_one_is_refused(tmp_path, capsys):
    assert main(["triton-repository", "--out", str(tmp_path / "models"), "--runtime", "openvino"]) == 2
    assert "--runtime is for --backend python alone, and onnxruntime is its own" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_without_triton_s_protobuf_the_command_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    with pytest.raises(UserError, match=r"pip install .* -e '\.\[triton\]'"):
        repository.write(tmp_path / "models", settings(backend="python"))


@pytest.mark.parametrize("runtime", ["pytorch", "onnxruntime"])
def test_the_readme_says_what_serving_needs(tmp_path, runtime):
    repository.write(tmp_path / "models", settings(backend="python", runtime=runtime, queue=7))
    written = (tmp_path / "models" / "README.md").read_text()
    text = " ".join(written.split())
    said = "nvcr.io/nvidia/tritonserver", "Use 26.05 or newer", "numpy<2", "At most 7 requests wait for a stage."
    assert all(part in text for part in said)
    assert ("`sam3/graphs`" in text) == (tmp_path / "models" / "sam3" / "graphs").is_dir() == (runtime != "pytorch")
    assert not re.search(r"[{}]\w+[{}]|/root|/work|/tmp", re.sub(r"```python.*?```", "", written, flags=re.DOTALL))


def test_the_readme_of_engines_says_what_they_are_bound_to_and_of_an_open_queue_that_it_is_open():
    known = signature.of_checkpoint(NANO, SIDE)
    wanted = settings(backend="tensorrt", device="cuda", precision="fp16", queue=0)
    machine = {
        "tensorrt": "11.4.0",
        "gpu": "NVIDIA H200",
        "gpu_capability": "9.0",
        "tensorrt_library": "1",
        "gpu_driver": "2",
    }
    text = " ".join(readme.text(wanted, known, machine).split())
    assert "built by TensorRT 11.4.0 for: NVIDIA H200 (compute capability 9.0). Which container" in text
    assert "Any number of requests wait for a stage. One that has waited 30 s" in text
    assert "--gpus all" in text and "have not run it on a server" in text
    assert "can be served nowhere" in readme.text(wanted, known, machine | {"gpu": "no GPU"})


# The Python back end's models, without a server


@pytest.mark.parametrize("runtime", ["pytorch", "onnxruntime", "openvino"])
def test_requests_with_different_numbers_of_prompts_are_computed_together(runtime, backend, requests, expected):
    chosen = backends.get(runtime)
    if reason := chosen.unavailable():
        pytest.skip(reason)
    runner = chosen()
    runner.load(chosen.prepare(Artifacts(NANO, SIDE, threads=1)))
    features = stages.image(runner, [(images,) for images, _, _ in requests])
    text = stages.text(runner, [(ids, mask) for _, ids, mask in requests])
    given = [(*maps, *each, mask) for maps, each, (_, _, mask) in zip(features, text, requests, strict=True)]
    found = stages.detect(runner, given)
    for one, wanted in zip(found, expected, strict=True):
        assert_close(one, wanted, 1e-5 if runtime == "pytorch" else 1e-4)
    alone = stages.detect(runner, given[1:2])[0]
    assert_close(alone, expected[1], 1e-5 if runtime == "pytorch" else 1e-4)
    runner.close()


class FakeTriton:
    """What the model uses of triton_python_backend_utils."""

    Logger = SimpleNamespace(log_error=lambda message: None)

    class TritonError:
        CANCELLED, INVALID_ARG, INTERNAL = "cancelled", "invalid", "internal"

        def __init__(self, message, code):
            self.message, self.code = message, code

    class InferenceResponse:
        def __init__(self, output_tensors, error=None):
            self.outputs, self.error = dict(output_tensors), error

    @staticmethod
    def Tensor(name, value):  # noqa: N802 (Triton's)
        return name, value

    @staticmethod
    def get_input_tensor_by_name(request, name):
        return SimpleNamespace(as_numpy=lambda: request.values[name])


def asked(cancelled=False, wanted=("text_features",), **values):
    return SimpleNamespace(values=values, is_cancelled=lambda: cancelled, requested_output_names=lambda: wanted)


def prompts(count, token=7):
    return {"ids": np.full((1, count, 32), token, np.int64), "mask": np.ones((1, count, 32), bool)}


@pytest.fixture
def model(tmp_path, monkeypatch, small_checkpoint):
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", FakeTriton)
    target = tmp_path / "models"
    repository.write(target, settings(checkpoint=small_checkpoint, resolution=84, backend="python", max_prompts=4))
    written = read(target, "sam3_text")
    description = {
        "input": [{"name": value.name} for value in written.input],
        "output": [{"name": value.name} for value in written.output],
        "parameters": {name: {"string_value": value.string_value} for name, value in written.parameters.items()},
    }
    made = python_model.TritonPythonModel()
    made.initialize({"model_config": json.dumps(description), "model_repository": str(target / "sam3_text")})
    yield made
    made.finalize()
    made.finalize()  # as Triton does after a failed initialize


def test_a_wrong_request_fails_alone(model):
    requests = [
        asked(**prompts(1)),
        asked(**prompts(5)),
        asked(**prompts(2, token=60)),
        asked(cancelled=True, **prompts(1)),
        asked(**prompts(2, token=-1)),
        asked(ids=prompts(2)["ids"], mask=prompts(1)["mask"]),
        asked(ids=prompts(1)["ids"][:, :0], mask=prompts(1)["mask"][:, :0]),
        asked(**prompts(3)),
    ]
    responses = model.execute(requests)
    problems = [response.error and (response.error.code, response.error.message) for response in responses]
    assert problems[0] is problems[7] is None
    assert problems[1] == ("invalid", "5 prompts in one request, and the model takes 1 to 4: send several requests")
    for number in (2, 4):
        assert problems[number] == ("invalid", "ids must be tokens of the checkpoint, from 0 to 59")
    assert problems[3][0] == "cancelled"
    assert problems[5] == ("invalid", "ids has 2 prompts and mask has 1: give one mask for each prompt")
    assert problems[6][0] == "invalid" and problems[6][1].startswith("0 prompts in one request")
    assert responses[0].outputs["text_features"].shape == (1, 1, 32, 32)
    assert responses[7].outputs["text_features"].shape == (1, 3, 32, 32)


def test_a_batch_that_fails_is_computed_one_by_one(model):
    compute, sizes = model._compute, []

    def scarce(backend, values):
        sizes.append(len(values))
        if len(values) > 1 or values[0][0].shape[1] == 3:
            raise MemoryError("no room")
        return compute(backend, values)

    scarce.__name__ = "text"
    model._compute = scarce
    responses = model.execute([asked(**prompts(1)), asked(**prompts(3)), asked(**prompts(2))])
    assert sizes == [3, 1, 1, 1]
    assert [response.error is None for response in responses] == [True, False, True]
    assert (responses[1].error.code, responses[1].error.message) == ("internal", "MemoryError: no room")


def test_only_what_is_asked_for_is_sent_and_only_one_stage_is_kept(model):
    (response,) = model.execute([asked(wanted=(), **prompts(1))])
    assert response.error is None and response.outputs == {}
    assert list(model._backend.stages) == ["text"]


# The real server


@pytest.fixture(scope="module")
def python_repository(tmp_path_factory):
    target = tmp_path_factory.mktemp("python") / "models"
    wanted = settings(backend="python", max_batch=4, max_prompts=3, queue=12, queue_delay=0.05, threads=1)
    repository.write(target, wanted)
    return target


@pytest.fixture(scope="module")
def server(python_repository, tmp_path_factory):
    if reason := triton_server.absent():
        pytest.skip(reason)
    options = "--model-control-mode=explicit", "--load-model=*"
    with TritonServer(python_repository, tmp_path_factory.mktemp("server"), *options) as running:
        running.client = triton.InferenceServerClient(running.url)
        running.wait_until_ready(running.client)
        yield running
        running.client.close()


def inputs(**values):
    made = []
    for name, value in values.items():
        kind = {"uint8": "UINT8", "int64": "INT64", "bool": "BOOL", "float32": "FP32"}[value.dtype.name]
        made.append(triton.InferInput(name, value.shape, kind))
        made[-1].set_data_from_numpy(value)
    return made


def concurrently(client, model, requests):
    """The answers, or what was raised, in the order of the requests, all of which are sent at once."""
    answers, done = [None] * len(requests), threading.Semaphore(0)

    def keep(number, result, error):
        answers[number] = error or result
        done.release()

    for number, request in enumerate(requests):
        client.async_infer(model, inputs(**request), lambda result, error, n=number: keep(n, result, error))
    for _ in requests:
        assert done.acquire(timeout=60)
    return answers


def fields(answer):
    return [answer.as_numpy(name) for name in OUTPUTS["detect"]]


def statistics(client, model):
    (found,) = client.get_inference_statistics(model).model_stats
    return found


def counted(client, model, number):
    """The statistics once they hold so many inferences, or after a while: a batch is counted after it is answered."""
    until(lambda: statistics(client, model).inference_count >= number)
    return statistics(client, model)


def test_the_server_is_ready_and_warm(server):
    assert all(server.client.is_model_ready(name) for name in (*MODELS, "sam3"))
    log = server.log.read_text(errors="replace")
    for model in MODELS:
        for sample in ("1 image", "4 images"):
            assert re.search(rf"'{model}' instance {model}\w* is running warmup sample '{sample}'", log), (
                model,
                sample,
            )


def test_the_server_reads_the_configurations_as_they_are_written(server, python_repository):
    """All but what it adds itself."""
    for name in (*MODELS, "sam3"):
        wanted, served = read(python_repository, name), server.client.get_model_config(name).config
        for field in ("input", "output", "max_batch_size", "dynamic_batching", "model_warmup", "ensemble_scheduling"):
            assert getattr(served, field) == getattr(wanted, field), (name, field)


def test_the_ensemble_gives_what_the_backend_gives(server, requests, expected):
    for (images, ids, mask), wanted in zip(requests, expected, strict=True):
        answer = server.client.infer("sam3", inputs(pixels=images, ids=ids, mask=mask))
        assert_close(fields(answer), wanted)


def test_requests_that_wait_together_are_computed_together(server, requests, expected):
    before = {name: statistics(server.client, name) for name in MODELS}
    order = [0, 2, 0, 2, 2, 0, 2, 0]  # one image each, with 2 or 3 prompts
    given = [dict(zip(("pixels", "ids", "mask"), requests[number], strict=True)) for number in order]
    for number, answer in zip(order, concurrently(server.client, "sam3", given), strict=True):
        assert_close(fields(answer), expected[number])
    for name in MODELS:
        after = counted(server.client, name, before[name].inference_count + len(order))
        computed = after.execution_count - before[name].execution_count
        assert after.inference_count - before[name].inference_count == len(order)
        assert 2 <= computed < len(order), name  # at most 4 at once
        assert max(batch.batch_size for batch in after.batch_stats) <= 4
    # The first two that wait for the text stage are as many as it prefers, and have different numbers of prompts.
    assert any(batch.batch_size > 1 for batch in statistics(server.client, "sam3_text").batch_stats)


def test_a_full_queue_answers_unavailable(server, requests, backend):
    """Of a stage: before 26.05 an ensemble does not survive a stage's refusal, as a repository's README says."""
    images, _, _ = requests[0]
    answers = concurrently(server.client, "sam3_image", [{"pixels": images}] * 60)
    refused = [answer for answer in answers if isinstance(answer, InferenceServerException)]
    assert 0 < len(refused) < len(answers)
    assert {answer.status() for answer in refused} == {"StatusCode.UNAVAILABLE"}
    assert all("maximum queue size" in answer.message() for answer in refused)
    wanted = backend.download(tuple(backend.image(backend.upload(images))))
    for answer in answers:
        if answer not in refused:
            for name, value in zip(FEATURES, wanted, strict=True):
                np.testing.assert_allclose(answer.as_numpy(name), value, atol=1e-5 * np.abs(value).max())


def test_a_request_that_waited_too_long_answers_unavailable(server, requests):
    images, _, _ = requests[0]
    with pytest.raises(InferenceServerException) as refusal:  # alone, it would wait 50 ms for others
        server.client.infer("sam3_image", inputs(pixels=images), timeout=1000)
    assert refusal.value.status() == "StatusCode.UNAVAILABLE" and "timeout" in refusal.value.message()


def test_a_wrong_request_gets_a_sentence_and_the_others_their_answer(server, requests, backend):
    _, ids, mask = requests[0]
    given = [
        {"ids": ids, "mask": mask},
        {"ids": np.repeat(ids, 2, axis=1), "mask": np.repeat(mask, 2, axis=1)},
        {"ids": ids + 10**6, "mask": mask},
    ]
    right, too_many, no_token = concurrently(server.client, "sam3_text", given)
    wanted = backend.download(backend.text(backend.upload(ids[0]), backend.upload(mask[0])))
    np.testing.assert_allclose(right.as_numpy("text_features")[0], wanted, atol=1e-5 * np.abs(wanted).max())
    assert too_many.status() == no_token.status() == "StatusCode.INVALID_ARGUMENT"
    assert "4 prompts in one request, and the model takes 1 to 3" in too_many.message()
    assert "ids must be tokens of the checkpoint" in no_token.message()


def test_a_stage_can_be_asked_for_some_of_its_outputs(server, requests, backend):
    images, _, _ = requests[1]
    answer = server.client.infer(
        "sam3_image", inputs(pixels=images), outputs=[triton.InferRequestedOutput("features_1x")]
    )
    assert answer.as_numpy("features_4x") is None
    wanted = backend.download(tuple(backend.image(backend.upload(images))))[2]
    np.testing.assert_allclose(answer.as_numpy("features_1x"), wanted, atol=1e-5 * np.abs(wanted).max())


def test_the_readme_s_client_finds_what_segment_finds(server, python_repository, tmp_path):
    scene = next(scene for scene in load_split("test") if any(len(prompt.answers) > 1 for prompt in scene.prompts))
    photograph, text = tmp_path / "scene.webp", max(scene.prompts, key=lambda prompt: len(prompt.answers)).text
    photograph.write_bytes(scene.file)
    code = re.search(r"```python\n(.*?)```", (python_repository / "README.md").read_text(), re.DOTALL)[1]
    (tmp_path / "client.py").write_text(code)
    command = [sys.executable, tmp_path / "client.py", server.url, photograph, text, "circle"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = segment(scene.image, [text, "circle"], "pytorch", Artifacts(NANO, SIDE), threshold=0.3).found
    lines = [
        f"{prompt}: {score:.2f} at " + " ".join(f"{value:.0f}" for value in box)
        for prompt, each in found
        for score, box in zip(each.scores, each.boxes, strict=True)
    ]
    assert len(found[0][1]) > 0 and done.stdout.splitlines() == lines


def test_models_unload_and_the_server_ends_cleanly(server):
    """Last of all: nothing of it is left afterwards."""
    client = server.client
    assert len(server.regions()) == 3
    for name in ("sam3", *MODELS):
        client.unload_model(name)
    deadline, states = time.monotonic() + 30, {}
    while set(states.values()) != {"UNAVAILABLE"} and time.monotonic() < deadline:
        time.sleep(0.1)
        states = {model.name: model.state for model in client.get_model_repository_index().models}
    assert states == dict.fromkeys(("sam3", *MODELS), "UNAVAILABLE") and server.regions() == []
    assert server.stop() == 0
    assert server.processes() == [] and server.regions() == []
