"""What ONNX Runtime's CUDA backend does between its graphs, on memory of the host: its own provider is absent here, and
so are CUDA graphs and streams."""

import ctypes

import numpy as np
import onnxruntime as ort
import pytest

from sam3lab.backends import onnxruntime_cuda
from sam3lab.backends.onnxruntime import OnnxRuntimeBackend
from sam3lab.export import cache
from sam3lab.export.onnx import ORT_CUDA
from tests.cuda_operators import in_standard_operators
from tests.test_backends import PARITY, make_inputs, relative_error, run, start

RESOLUTION = 98  # as in test_onnxruntime_cuda, so that the graphs are exported once


class Stream:
    address = 0

    def copy(self, target, source, size):
        ctypes.memmove(target, source, size)

    def synchronize(self):
        pass

    def close(self):
        pass


class OrtValue:
    """Values for a device that are put on the host."""

    own = ort.OrtValue

    @classmethod
    def ortvalue_from_shape_and_type(cls, shape, dtype, device, _):
        assert device == "cuda"
        return cls.own.ortvalue_from_shape_and_type(shape, dtype, "cpu", 0)

    @classmethod
    def ortvalue_from_numpy(cls, array, device, number):
        value = cls.ortvalue_from_shape_and_type(array.shape, array.dtype, device, number)
        value.numpy()[...] = array
        return value


class Session:
    """A session of the CUDA provider that the CPU provider runs."""

    own = ort.InferenceSession

    def __init__(self, path, options, providers, disabled_optimizers):
        providers = [name for name in providers if isinstance(name, str)]
        self._session = self.own(
            in_standard_operators(path), options, providers, disabled_optimizers=disabled_optimizers
        )
        self.get_inputs, self.get_outputs = self._session.get_inputs, self._session.get_outputs

    def get_providers(self):
        return [onnxruntime_cuda.PROVIDER]

    def io_binding(self):
        binding = self._session.io_binding()
        bind = binding.bind_input
        binding.bind_input = lambda name, _, *rest: bind(name, "cpu", *rest)
        return binding

    def run_with_iobinding(self, binding, options):
        self._session.run_with_iobinding(binding)


@pytest.fixture
def backend(small_checkpoint, monkeypatch):
    graphs = cache.graphs(small_checkpoint, RESOLUTION, "fp32", target=ORT_CUDA)
    monkeypatch.setattr(onnxruntime_cuda, "Stream", Stream)
    monkeypatch.setattr(ort, "OrtValue", OrtValue)
    monkeypatch.setattr(ort, "InferenceSession", Session)
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    made = OnnxRuntimeBackend()
    # as `load` does where there is a GPU
    made._stages = onnxruntime_cuda.CudaStages(graphs, ort.SessionOptions(), "fp32")
    return made


def test_pairs_may_have_images_in_any_order_and_number(backend, small_checkpoint):
    inputs, other = make_inputs(resolution=RESOLUTION), start("pytorch", small_checkpoint, resolution=RESOLUTION)
    for pairs in ([0, 1, 2, 3], [3, 1, 2], [2, 0, 0, 1, 3], [0], [3], [0, 1]):
        some = inputs | {name: inputs[name][pairs] for name in ("image_index", "text_index")}
        ours, theirs = run(backend, some), run(other, some)
        assert {name: value.shape for name, value in ours.items()} == {
            name: value.shape for name, value in theirs.items()
        }
        errors = {name: relative_error(value, theirs[name]) for name, value in ours.items()}
        assert max(errors.values()) <= PARITY, (pairs, errors)


def test_features_that_were_on_the_host_can_be_given_to_the_detector(backend):
    inputs = make_inputs(resolution=RESOLUTION)
    values = {name: backend.upload(array) for name, array in inputs.items()}
    features = backend.image(values["pixels"])
    text = backend.text(values["ids"], values["mask"])
    pairs = values["mask"], values["image_index"], values["text_index"]
    direct = backend.download(backend.detect(features, text, *pairs).masks).copy()
    again = tuple(map(backend.upload, backend.download(features)))
    np.testing.assert_allclose(backend.download(backend.detect(again, text, *pairs).masks), direct, atol=1e-6)


def test_an_image_that_is_not_there_is_refused(backend):
    inputs = make_inputs(resolution=RESOLUTION)
    values = {name: backend.upload(array) for name, array in inputs.items()}
    features = backend.image(values["pixels"])
    text = backend.text(values["ids"], values["mask"])
    with pytest.raises(ValueError, match="invalid entry in coordinates array"):
        backend.detect(features, text, values["mask"], backend.upload(np.array([2])), backend.upload(np.array([0])))
