"""One contract for every backend: what it computes, and how it may be used."""

import contextlib
import json
import subprocess
import sys

import numpy as np
import pytest

from sam3lab import backends
from sam3lab.backends import Artifacts
from sam3lab.backends.pytorch import CompiledPyTorchBackend
from sam3lab.bench.artifacts import to_json
from sam3lab.errors import UserError
from sam3lab.export import calibration
from tests.test_quantize import make_samples

RESOLUTION = 84
DEVICES = ("cpu", "cuda")
PARITY = 1e-4  # relative error of every output in float32


def relative_error(value, reference):
    return np.linalg.norm(value.astype(np.float64) - reference) / np.linalg.norm(reference)


def make_inputs(seed=0, resolution=RESOLUTION):
    random = np.random.default_rng(seed)
    mask = np.ones((3, 32), dtype=bool)
    mask[0, 4:] = mask[1, 13:] = False
    return {
        "pixels": random.integers(0, 256, (2, 3, resolution, resolution), dtype=np.uint8),
        "ids": random.integers(0, 60, (3, 32)),
        "mask": mask,
        "image_index": np.array([0, 0, 1, 1]),
        "text_index": np.array([0, 2, 1, 0]),
    }


def run(backend, inputs):
    """All values between the stages and the outputs, on the host."""
    values = {name: backend.upload(array) for name, array in inputs.items()}
    features = backend.image(values["pixels"])
    text = backend.text(values["ids"], values["mask"])
    outputs = backend.detect(features, text, values["mask"], values["image_index"], values["text_index"])
    backend.synchronize()
    return {
        **{f"features_{i}": level for i, level in enumerate(backend.download(features))},
        "text": backend.download(text),
        **dict(zip(outputs._fields, backend.download(tuple(outputs)), strict=True)),
    }


def start(name, checkpoint, device="cpu", resolution=RESOLUTION):
    backend_class = backends.get(name)
    reason = backend_class.unavailable(device, "fp32")
    if reason:
        pytest.skip(f"{name} on {device}: {reason}")
    if name.startswith("meta"):
        pytest.skip(f"{name} has the published architecture only: see test_meta")
    backend = backend_class()
    backend.load(backend_class.prepare(Artifacts(checkpoint, resolution, device=device)))
    return backend


@pytest.fixture(scope="module")
def reference(small_checkpoint):
    return run(start("transformers", small_checkpoint), make_inputs())


@pytest.fixture(scope="module", params=[(name, device) for device in DEVICES for name in backends.names()], ids=str)
def backend(request, small_checkpoint):
    backend = start(request.param[0], small_checkpoint, request.param[1])
    yield backend
    backend.close()


def test_outputs_have_the_documented_shapes(backend):
    outputs = run(backend, make_inputs())
    g, width, queries = RESOLUTION // 14, 32, 7
    shapes = {name: value.shape for name, value in outputs.items()}
    assert shapes == {
        "features_0": (2, width, 4 * g, 4 * g),
        "features_1": (2, width, 2 * g, 2 * g),
        "features_2": (2, width, g, g),
        "text": (3, 32, width),
        "logits": (4, queries),
        "presence": (4, 1),
        "boxes": (4, queries, 4),
        "masks": (4, queries, 4 * g, 4 * g),
        "semantic": (4, 1, 4 * g, 4 * g),
    }
    assert {value.dtype for value in outputs.values()} == {np.dtype(np.float32)}


def test_every_output_equals_the_reference(backend, reference):
    errors = {name: relative_error(value, reference[name]) for name, value in run(backend, make_inputs()).items()}
    assert max(errors.values()) <= PARITY, errors


def test_other_batch_and_prompt_counts(backend):
    inputs = make_inputs(1)
    whole = run(backend, inputs)
    single = {
        "pixels": inputs["pixels"][1:],
        "ids": inputs["ids"][1:2],
        "mask": inputs["mask"][1:2],
        "image_index": np.array([0]),
        "text_index": np.array([0]),
    }
    alone = run(backend, single)  # image 1 with prompt 1 is pair 2 of the whole
    assert relative_error(alone["masks"][0], whole["masks"][2]) <= PARITY
    assert relative_error(alone["boxes"][0], whole["boxes"][2]) <= PARITY


def test_pairs_may_have_images_in_any_order_and_number(backend):
    inputs = make_inputs(4)
    whole = run(backend, inputs)
    for pairs in ([3, 1, 2], [2, 0, 0, 1, 3]):
        some = run(backend, inputs | {name: inputs[name][pairs] for name in ("image_index", "text_index")})
        for name in ("logits", "boxes", "masks"):
            assert relative_error(some[name], whole[name][pairs]) <= PARITY, name


def test_a_later_call_does_not_overwrite_an_earlier_value(backend):
    first, second = make_inputs(2), make_inputs(3)
    features = backend.image(backend.upload(first["pixels"]))
    before = backend.download(features)[0].copy()
    text = backend.text(backend.upload(first["ids"]), backend.upload(first["mask"]))
    words = backend.download(text).copy()
    backend.image(backend.upload(second["pixels"]))
    backend.text(backend.upload(second["ids"]), backend.upload(second["mask"]))
    np.testing.assert_array_equal(backend.download(features)[0], before)
    np.testing.assert_array_equal(backend.download(text), words)


def test_the_same_call_again_gives_the_same_and_leaves_its_inputs_alone(backend):
    inputs = make_inputs(5)
    values = {name: backend.upload(array) for name, array in inputs.items()}
    held = []
    for _ in range(6):  # more often than a backend may keep a way for these very values
        features = backend.image(values["pixels"])
        text = backend.text(values["ids"], values["mask"])
        held.append(
            (features, backend.detect(features, text, values["mask"], values["image_index"], values["text_index"]))
        )
        backend.image(backend.upload(make_inputs(6)["pixels"]))
    first = backend.download(tuple(held[0][1]))
    for features, outputs in held:
        for one, other in zip(first, backend.download(tuple(outputs)), strict=True):
            assert relative_error(other, one) <= 1e-6
        assert relative_error(backend.download(features)[0], backend.download(held[0][0])[0]) <= 1e-6
    for name, array in inputs.items():
        np.testing.assert_array_equal(backend.download(values[name]), array)


def test_rows_of_several_calls_become_one_batch(backend):
    """What a service does with features that it kept: the values of separate calls go into one call of the detector."""
    first, second = make_inputs(7), make_inputs(8)
    kept, words = [], []
    for inputs in (first, second):
        features = backend.image(backend.upload(inputs["pixels"]))
        text = backend.text(backend.upload(inputs["ids"]), backend.upload(inputs["mask"]))
        kept.append(backend.gather([(features, (1,))]))
        words.append(backend.gather([(text, (2,))]))
        rows = backend.download(kept[-1]), backend.download(features)
        for row, whole in zip(*rows, strict=True):
            np.testing.assert_array_equal(row, whole[1:])
        assert backend.nbytes(features) == len(inputs["pixels"]) * backend.nbytes(kept[-1])
    mask = backend.upload(np.stack([first["mask"][2], second["mask"][2]]))
    pairs = backend.upload(np.array([0, 1])), backend.upload(np.array([0, 1]))
    both = [backend.gather([(value, (0,)) for value in values]) for values in (kept, words)]
    outputs = backend.detect(*both, mask, *pairs)
    masks = backend.download(backend.gather([(outputs.masks, (1, 3)), (outputs.masks, (0, 2))]))
    whole = backend.download(outputs.masks)
    np.testing.assert_array_equal(masks, np.stack([whole[1, 3], whole[0, 2]]))
    np.testing.assert_array_equal(backend.fetch(outputs.masks).astype(np.float32), whole)
    for number, inputs in enumerate((first, second)):
        alone = run(backend, inputs | {"image_index": np.array([1]), "text_index": np.array([2])})
        for name, value in zip(outputs._fields, backend.download(tuple(outputs)), strict=True):
            assert relative_error(value[number], alone[name][0]) <= PARITY, name


class FakeStream:
    """A stream, or an event of one, as far as the order of the stages goes: `waited` has what it waited for."""

    def __init__(self):
        self.waited = []

    def record(self):
        """Nothing: what comes before it is what it stands for."""

    def wait_event(self, event):
        self.waited.append("the event before the image stage")

    def wait_stream(self, stream):
        self.waited.append("everything")


def test_a_text_stage_runs_beside_the_image_stage_right_before_it_alone(monkeypatch):
    """Whatever was enqueued since may read what it writes to, `gather` too."""
    import torch

    backend, side, text = CompiledPyTorchBackend(), FakeStream(), torch.zeros(1, 1)
    monkeypatch.setattr(torch.cuda, "current_stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    backend.device, backend._side, backend._image_next, backend._beside_image = (
        torch.device("cuda"),
        side,
        FakeStream(),
        False,
    )
    backend._run = lambda stage, *values: (text,) * (5 if stage == "detect" else 1)
    between = {
        "gather": lambda: backend.gather([(text, (0,))]),
        "detect": lambda: backend.detect((), text, None, None, None),
    }
    for name, enqueue in between.items():
        side.waited.clear()
        backend.image(None)
        backend.text(None, None)
        enqueue()
        backend.text(None, None)
        assert side.waited == ["the event before the image stage", "everything"], name


def test_onnxruntime_needs_a_gpu_for_cuda(monkeypatch):
    ort, backend = pytest.importorskip("onnxruntime"), backends.get("onnxruntime")
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr("sam3lab.nvml.gpu", lambda: None)
    assert "no NVIDIA GPU is to be seen" in backend.unavailable("cuda", "fp16")
    assert backend.unavailable("cpu", "fp32") is None
    monkeypatch.setattr("sam3lab.nvml.gpu", lambda: object())
    assert backend.unavailable("cuda", "fp16") is None


def test_an_uploaded_value_is_independent_of_its_array(backend):
    inputs = make_inputs(4)
    kept = inputs["ids"].copy()
    # with no one to hold the value
    np.testing.assert_array_equal(backend.download(backend.upload(inputs["ids"])), kept)
    value = backend.upload(inputs["ids"])
    np.testing.assert_array_equal(backend.download(value), kept)
    assert backend.download(value).dtype == np.int64


INT8 = """
import sys
from sam3lab import backends
from sam3lab.backends import Artifacts
from sam3lab.bench.artifacts import from_json
import json
backend = backends.get(sys.argv[1])()
backend.load(from_json(json.loads(sys.argv[2])))
print([name for name in ("torch", "transformers", "onnx", "pandas") if name in sys.modules])
"""


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_int8_loads_without_torch_and_computes_nearly_the_same(name, small_checkpoint, reference, monkeypatch):
    # random weights know no words: ids of their own vocabulary stand in for the scenes' prompts
    monkeypatch.setattr(calibration, "samples", lambda *_: make_samples(side=RESOLUTION))
    backend_class = backends.get(name)
    if reason := backend_class.unavailable("cpu", "int8"):
        pytest.skip(reason)
    artifacts = backend_class.prepare(Artifacts(small_checkpoint, RESOLUTION, "int8"))
    command = [sys.executable, "-c", INT8, name, json.dumps(to_json(artifacts))]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"
    backend = backend_class()
    backend.load(artifacts)
    outputs = run(backend, make_inputs())
    assert {name: value.shape for name, value in outputs.items()} == {n: v.shape for n, v in reference.items()}
    errors = {name: relative_error(value, reference[name]) for name, value in outputs.items()}
    assert 1e-4 < max(errors.values()) < 0.5, errors
    backend.close()


@pytest.mark.parametrize("name", backends.names())
def test_what_it_cannot_do_has_a_reason(name):
    backend = backends.get(name)
    assert backend.name == name
    assert backend.unavailable("tpu", "fp32")
    assert backend.unavailable("cpu", "fp7")


def test_unknown_backend_names_the_known_ones():
    with pytest.raises(UserError, match=r"tensorflow.*transformers, pytorch"):
        backends.get("tensorflow")
    with pytest.raises(UserError, match="could not be imported"):
        backends.get("no.such.module:Class")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("os:getcwd", "os:getcwd is no backend: it lacks unavailable, prepare, load"),
        ("os:nothing", "could not be imported from os"),
        (":Class", "Empty module name"),
        ("broken:Class", "could not be imported from broken: invalid syntax"),
    ],
)
def test_what_is_no_backend_is_refused(name, message, tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text("class Class(:")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(UserError, match=message):
        backends.get(name)
