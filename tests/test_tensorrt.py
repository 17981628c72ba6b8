"""The TensorRT backend, as far as it goes without TensorRT's runtime.

On any machine with TensorRT's bindings: the backend's own work (engines, profiles, shapes, addresses, scratch memory,
graphs, order of closing) against a stand-in for runtime and device that computes with ONNX Runtime in host memory, and
refuses what TensorRT would refuse. On a machine with a GPU and PyCUDA, without TensorRT: pools, streams, page-locked
copies, PyTorch's context, CUDA graphs and closing, for real.
"""

import ctypes
import gc
import re
import subprocess
import sys
import weakref
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from sam3lab import backends
from sam3lab.backends import Artifacts, pycuda_device
from sam3lab.backends import tensorrt as backend_module
from sam3lab.backends.pycuda_device import DeviceArray
from sam3lab.backends.tensorrt import TensorRtBackend
from sam3lab.bench.artifacts import from_json, to_json
from sam3lab.errors import UserError
from sam3lab.export import cache, engine, engine_builder, engine_profiles, manifest
from sam3lab.export.onnx import INPUTS
from sam3lab.model.checkpoint import fingerprint, load_model
from sam3lab.serve import failures
from tests.test_backends import RESOLUTION, make_inputs, relative_error, run
from tests.test_engine import HERE

ALIGNMENT = 256


class HostMemory:
    """What a pool gives: an address, 256-byte aligned, of memory that is full of garbage."""

    def __init__(self, nbytes):
        self._bytes = np.full(nbytes + ALIGNMENT, 0xA5, dtype=np.uint8)
        self._address = -(-self._bytes.ctypes.data // ALIGNMENT) * ALIGNMENT

    def __int__(self):
        return self._address


def at(address, shape, dtype):
    """The array at an address."""
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * nbytes).from_address(address), dtype=dtype).reshape(shape)


class HostGraph:
    def __init__(self, recorded):
        self._recorded, self.closed = recorded, False

    def launch(self):
        assert not self.closed
        for work in self._recorded:
            work()

    def close(self):
        self._recorded, self.closed = [], True


class HostDevice:
    """pycuda_device.Device in host memory. Work is done when enqueued, but only recorded during a capture."""

    def __init__(self):
        self.stream, self.recording, self.closed, self.graphs, self.copies = 77, None, False, [], 0

    def enqueue(self, work):
        work() if self.recording is None else self.recording.append(work)

    def empty(self, shape, dtype):
        shape, dtype = tuple(shape), np.dtype(dtype)
        return DeviceArray(HostMemory(int(np.prod(shape)) * dtype.itemsize), shape, dtype)

    def upload(self, array):
        target = self.empty(array.shape, array.dtype)
        at(target.address, target.shape, target.dtype)[...] = array
        return target

    def download(self, array, dtype=None):
        return at(array.address, array.shape, array.dtype).astype(dtype or array.dtype)

    def write(self, target, source):
        assert target.nbytes == source.nbytes
        self.copies += 1
        self.enqueue(lambda: ctypes.memmove(target.address, source.address, target.nbytes))

    def copy(self, source):
        target = self.empty(source.shape, source.dtype)
        self.write(target, source)
        return target

    def capture(self, enqueue):
        self.recording = []
        try:
            enqueue()
            self.graphs.append(HostGraph(self.recording))
        finally:
            self.recording = None
        return self.graphs[-1]

    def give_back(self):
        self.given_back = True

    def synchronize(self):
        assert self.recording is None  # a capture would break

    def close(self):
        self.closed = True


class Context:
    """An IExecutionContext that runs an ONNX graph. Its public names are those of TensorRT's."""

    def __init__(self, engine, device):
        self._engine, self._device = engine, device
        self._profile, self._memory, self._shapes, self._addresses, self.runs = 0, None, {}, {}, 0

    def set_optimization_profile_async(self, index, stream):
        assert stream == self._device.stream
        self._profile, self._shapes = index, {}  # a change invalidates what was set
        return 0 <= index < len(self._engine.profiles)

    def set_device_memory(self, memory, size):
        assert memory % ALIGNMENT == 0
        self._memory = size

    def set_input_shape(self, name, shape):
        least, _, greatest = self._engine.profiles[self._profile][self._engine.axes[name]]
        rest = [dim.dim_value for dim in self._engine.values[name].type.tensor_type.shape.dim[1:]]
        self._shapes[name] = tuple(shape)
        return least <= shape[0] <= greatest and list(shape[1:]) == rest

    def get_tensor_shape(self, name):
        assert self._shapes.keys() == self._engine.axes.keys(), "shapes of outputs follow those of all inputs"
        dims = self._engine.values[name].type.tensor_type.shape.dim
        sizes = {self._engine.axes[key]: shape[0] for key, shape in self._shapes.items()}
        return tuple(sizes[dim.dim_param] if dim.dim_param else dim.dim_value for dim in dims)

    def set_tensor_address(self, name, memory):
        self._addresses[name] = memory
        return name in self._engine.values

    def execute_async_v3(self, stream_handle):
        self.runs += 1
        assert stream_handle == self._device.stream
        assert self._memory >= self._engine.get_device_memory_size_for_profile_v2(self._profile)
        assert self._shapes.keys() == self._engine.axes.keys()
        assert self._addresses.keys() == self._engine.values.keys()
        session, addresses = self._engine.session, dict(self._addresses)  # a graph keeps the addresses of its capture

        def work():
            feed = {name: at(addresses[name], self._shapes[name], self._engine.dtype(name)) for name in self._shapes}
            names = [output.name for output in session.get_outputs()]
            for name, value in zip(names, session.run(names, feed), strict=True):
                at(addresses[name], value.shape, value.dtype)[...] = value

        self._device.enqueue(work)
        return True


class Engine:
    """An ICudaEngine that is an ONNX graph."""

    def __init__(self, data, device):
        import onnxruntime

        graph = onnx.load_from_string(data).graph
        self.values = {value.name: value for value in (*graph.input, *graph.output)}
        self.axes = {value.name: value.type.tensor_type.shape.dim[0].dim_param for value in graph.input}
        self.session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        self.profiles, self._device, self.contexts = engine_profiles.PROFILES, device, []

    def dtype(self, name):
        return onnx.helper.tensor_dtype_to_np_dtype(self.values[name].type.tensor_type.elem_type)

    def get_device_memory_size_for_profile_v2(self, profile_index):
        return 1000 * (profile_index + 1) + len(self.values)

    def get_tensor_dtype(self, name):
        import tensorrt as trt

        kinds = {"float32": trt.float32, "float16": trt.float16, "int64": trt.int64, "uint8": trt.uint8}
        return kinds.get(self.dtype(name).name, trt.bool)

    def create_execution_context(self, strategy):
        import tensorrt as trt

        assert strategy == trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = Context(self, self._device)
        self.contexts.append(weakref.ref(context))
        return context


def test_parts_of_values_are_gathered_on_the_device():
    backend, random = TensorRtBackend(), np.random.default_rng(0)
    backend.device = HostDevice()
    arrays = [random.standard_normal((3, 2, 5), dtype=np.float32) for _ in range(2)]
    one, other = map(backend.upload, arrays)
    rows = backend.gather([(one, (2,)), (other, (0,)), (one, (2,))])
    np.testing.assert_array_equal(backend.download(rows), np.stack([arrays[0][2], arrays[1][0], arrays[0][2]]))
    inner = backend.gather([(one, (1, 1)), (other, (2, 0))])
    np.testing.assert_array_equal(backend.download(inner), np.stack([arrays[0][1, 1], arrays[1][2, 0]]))
    pair = backend.gather([((one, other), (1,)), ((other, one), (0,))])
    np.testing.assert_array_equal(backend.download(pair)[1], np.stack([arrays[1][1], arrays[0][0]]))
    assert (backend.nbytes(rows), backend.nbytes((one, other))) == (3 * 2 * 5 * 4, 2 * 3 * 2 * 5 * 4)
    at(rows.address, rows.shape, rows.dtype)[...] = 0  # its memory is its own
    np.testing.assert_array_equal(backend.download(one), arrays[0])


@pytest.fixture
def world(monkeypatch):
    """Stand-ins for the device and TensorRT's runtime; says what was made of them."""
    trt = pytest.importorskip("tensorrt")
    made = SimpleNamespace(device=None, engines=[], ended=[])

    def open_device():
        made.device = HostDevice()
        return made.device

    class Runtime:
        def __init__(self, logger):
            assert isinstance(logger, trt.ILogger)
            weakref.finalize(self, made.ended.append, "runtime")

        def deserialize_cuda_engine(self, data):
            one = Engine(data, made.device)
            weakref.finalize(one, made.ended.append, "engine")
            made.engines.append(weakref.ref(one))
            return one

    monkeypatch.setattr(pycuda_device, "Device", open_device)
    monkeypatch.setattr(trt, "Runtime", Runtime)
    monkeypatch.setattr(engine, "machine", lambda: dict(HERE))
    return made


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def stored(request, small_checkpoint, tmp_path_factory):
    """Artifacts whose engines are the ONNX graphs themselves, which is what the stand-in reads."""
    pytest.importorskip("tensorrt")
    graphs = cache.graphs(small_checkpoint, RESOLUTION, engine.GRAPHS[request.param])
    directory = tmp_path_factory.mktemp("engines")
    for stage in INPUTS:
        (directory / f"{stage}.engine").write_bytes((graphs / f"{stage}.onnx").read_bytes())
    about = {"checkpoint": fingerprint(small_checkpoint), "resolution": RESOLUTION, "precision": request.param}
    manifest.write(directory, about | HERE | {"options": {"profiles": list(engine_profiles.PROFILES)}})
    return Artifacts(small_checkpoint, RESOLUTION, request.param, "cuda", graphs=directory)


@pytest.fixture
def backend(world, stored):
    backend = TensorRtBackend()
    backend.load(from_json(to_json(backend.prepare(stored))))
    yield backend
    backend.close()


def reference(checkpoint, inputs):
    import torch

    model = load_model(checkpoint, RESOLUTION)
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    with torch.inference_mode():
        features, text = model.image_encoder(tensors["pixels"]), model.text_encoder(tensors["ids"], tensors["mask"])
        raw = model.detector(*features, text, tensors["mask"], tensors["image_index"], tensors["text_index"])
    names = ("features_0", "features_1", "features_2", "text", "logits", "presence", "boxes", "masks", "semantic")
    return {name: value.numpy() for name, value in zip(names, (*features, text, *raw), strict=True)}


def test_every_output_equals_the_reference_call_after_call(backend, stored, world):
    limit = {"fp32": 1e-4, "fp16": 2e-2}[stored.precision]
    for seed in (0, 1, 0, 0, 1):  # other inputs at other addresses, runs of TensorRT and of graphs
        inputs = make_inputs(seed)
        expected = reference(stored.checkpoint, inputs)
        errors = {name: relative_error(value, expected[name]) for name, value in run(backend, inputs).items()}
        assert max(errors.values()) <= limit, errors


def test_repeated_calls_are_replayed_without_copies(backend, world):
    values = {name: backend.upload(array) for name, array in make_inputs().items()}

    def pipeline():
        features, text = backend.image(values["pixels"]), backend.text(values["ids"], values["mask"])
        return backend.detect(features, text, values["mask"], values["image_index"], values["text_index"])

    first = backend.download(tuple(pipeline()))
    pipeline()
    assert not world.device.graphs
    pipeline()
    assert len(world.device.graphs) == 3
    runs = [context().runs for one in world.engines for context in one().contexts]
    again = backend.download(tuple(pipeline()))
    assert [context().runs for one in world.engines for context in one().contexts] == runs == [3, 3, 3]
    assert world.device.copies == 0
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_later_call_does_not_overwrite_an_earlier_value(backend):
    first, second = make_inputs(2), make_inputs(3)
    pixels, other = backend.upload(first["pixels"]), backend.upload(second["pixels"])
    kept = backend.image(pixels)
    before = backend.download(kept)[0].copy()
    for _ in range(4):
        backend.image(pixels), backend.image(other)
    np.testing.assert_array_equal(backend.download(kept)[0], before)


def test_scratch_memory_is_shared_and_as_large_as_its_profile_needs(backend, world):
    run(backend, make_inputs())  # two images: the second profile
    single = make_inputs()
    single = {name: single[name][:1] for name in single}
    run(backend, single)
    sizes = {profile: block.nbytes for profile, block in backend._scratch.items()}
    assert sizes == {1: 2000 + 12, 0: 1000 + 12}  # the most of three stages
    memory = {context()._memory for one in world.engines for context in one().contexts}
    assert memory == set(sizes.values())


def test_what_no_profile_holds_is_refused_in_words(backend):
    with pytest.raises(UserError, match=r"1–8 images, not 9 images: give them less .*--maxShapes"):
        backend.image(backend.upload(np.zeros((9, 3, RESOLUTION, RESOLUTION), dtype=np.uint8)))


def test_wrong_types_and_shapes_are_refused(backend):
    with pytest.raises(RuntimeError, match="has pixels in uint8, not in float32"):
        backend.image(backend.upload(np.zeros((1, 3, RESOLUTION, RESOLUTION), dtype=np.float32)))
    with pytest.raises(RuntimeError, match=r"pixels of shape \(1, 3, 98, 98\)"):
        backend.image(backend.upload(np.zeros((1, 3, 98, 98), dtype=np.uint8)))


def test_a_graph_that_cannot_be_captured_is_told_of(backend, world, monkeypatch):
    def refuse(enqueue):
        raise RuntimeError("cuStreamEndCapture gave CUDA error 901")

    monkeypatch.setattr(world.device, "capture", refuse)
    inputs = make_inputs()
    ids, mask = backend.upload(inputs["ids"]), backend.upload(inputs["mask"])
    first = backend.download(backend.text(ids, mask))
    backend.text(ids, mask)
    with pytest.warns(UserWarning, match="text stage runs without a CUDA graph: cuStreamEndCapture"):
        third = backend.text(ids, mask)
    np.testing.assert_array_equal(backend.download(third), first)


def test_what_is_kept_for_later_calls_can_be_given_back(backend, world):
    inputs = make_inputs()
    values = {name: backend.upload(array) for name, array in inputs.items()}
    before = [backend.text(values["ids"], values["mask"]) for _ in range(4)][-1]
    contexts = [context for one in world.engines for context in one().contexts]
    assert any(context() for context in contexts) and world.device.graphs
    wanted = backend.download(before)
    backend.give_back()
    gc.collect()
    assert not any(context() for context in contexts) and all(graph.closed for graph in world.device.graphs)
    assert world.device.given_back and not backend._scratch and not world.ended  # the engines stay
    np.testing.assert_array_equal(backend.download(backend.text(values["ids"], values["mask"])), wanted)
    np.testing.assert_array_equal(backend.download(before), wanted)


def test_a_context_that_there_is_no_memory_for_is_a_failure_of_memory(backend, monkeypatch):
    monkeypatch.setattr(Engine, "create_execution_context", lambda self, strategy: None)
    engine_builder.logger().errors = ["[defaultAllocator.cpp::allocate] Error Code 1: OutOfMemory (Requested 1 bytes)"]
    pixels = backend.upload(make_inputs()["pixels"])
    with pytest.raises(RuntimeError, match=r"image stage got no execution context: .*OutOfMemory") as caught:
        backend.image(pixels)
    assert failures.classify(caught.value) == failures.MEMORY
    with pytest.raises(RuntimeError, match="it gives no reason") as caught:  # the other failure's is not this one's
        backend.image(pixels)
    assert failures.classify(caught.value) == failures.ERROR


def test_runs_that_fail_are_not_those_after_which_a_graph_is_captured(backend, world, monkeypatch):
    inputs = make_inputs()
    ids, mask = backend.upload(inputs["ids"]), backend.upload(inputs["mask"])
    with monkeypatch.context() as patch:
        patch.setattr(Context, "execute_async_v3", lambda self, stream_handle: False)
        for _ in range(3):
            with pytest.raises(RuntimeError, match="text stage did not take its work"):
                backend.text(ids, mask)
    assert not world.device.graphs
    for graphs in (0, 0, 1, 1):
        backend.text(ids, mask)
        assert len(world.device.graphs) == graphs


def test_a_runtime_that_does_not_start_says_why(stored, world, monkeypatch):
    import tensorrt as trt

    def refuse(logger):
        logger.log(trt.ILogger.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(trt, "Runtime", refuse)
    with pytest.raises(RuntimeError, match=r"runtime does not start here: CUDA initialization failure"):
        TensorRtBackend().load(TensorRtBackend.prepare(stored))


def test_closing_ends_all_in_order(backend, world):
    inputs = make_inputs()
    values = {name: backend.upload(array) for name, array in inputs.items()}
    for _ in range(3):
        backend.image(values["pixels"])
    contexts = [context for one in world.engines for context in one().contexts]
    close, at_the_end = world.device.close, []
    world.device.close = lambda: at_the_end.append([*world.ended]) or close()
    backend.close()
    gc.collect()
    assert not any(context() for context in contexts)
    assert at_the_end == [["engine"] * 3 + ["runtime"]]  # before memory and context went
    assert world.device.closed and all(graph.closed for graph in world.device.graphs)
    backend.close()  # a second time does nothing


def test_no_tampered_engine_is_deserialised(world, stored, tmp_path):
    directory = tmp_path / "engines"
    cache.copy(stored.graphs, directory)
    data = bytearray((directory / "text.engine").read_bytes())
    data[len(data) // 2] ^= 1
    (directory / "text.engine").write_bytes(data)
    with pytest.raises(UserError, match=r"text\.engine was changed"):
        TensorRtBackend().load(from_json(to_json(stored) | {"graphs": str(directory)}))
    assert world.device is None and not world.engines


def test_engines_for_something_else_are_refused(world, stored):
    wanted = Artifacts(stored.checkpoint, 98, stored.precision, "cuda", graphs=stored.graphs)
    with pytest.raises(UserError, match="built for resolution 84, not 98"):
        TensorRtBackend.prepare(wanted)


def test_prepare_builds_from_graphs(small_checkpoint, monkeypatch, tmp_path):
    """From a directory of graphs, too: those of the mixed precision, for fp16."""
    pytest.importorskip("tensorrt")
    graphs = cache.graphs(small_checkpoint, RESOLUTION, "fp16-mixed")
    monkeypatch.setattr(engine_builder, "build", lambda graph, *_: graph.name.encode())
    monkeypatch.setattr("sam3lab.nvml.gpu", lambda: None)
    monkeypatch.setenv("SAM3LAB_CACHE", str(tmp_path))
    made = TensorRtBackend.prepare(Artifacts(small_checkpoint, RESOLUTION, "fp16", "cuda", graphs=graphs))
    assert (made.graphs / "detect.engine").read_bytes() == b"detect.onnx"
    with pytest.raises(UserError, match="precision fp16-mixed, not fp32"):
        TensorRtBackend.prepare(Artifacts(small_checkpoint, RESOLUTION, "tf32", "cuda", graphs=graphs))
    with pytest.raises(UserError, match="built without a GPU"):
        TensorRtBackend().load(made)


def test_the_stand_in_has_only_what_tensorrt_has():
    trt = pytest.importorskip("tensorrt")
    for ours, theirs, own in (
        (Context, trt.IExecutionContext, set()),
        (Engine, trt.ICudaEngine, {"dtype"}),
        (HostDevice, pycuda_device.Device, {"enqueue"}),
    ):
        public = {name for name in vars(ours) if not name.startswith("_")} - own
        assert public and not [name for name in public if not hasattr(theirs, name)]


def test_why_it_cannot_run(monkeypatch):
    assert "runs on cuda, not on 'cpu'" in TensorRtBackend.unavailable("cpu", "fp16")
    assert "precision fp8" in TensorRtBackend.unavailable("cuda", "fp8")
    assert "unsigned" in TensorRtBackend.unavailable("cuda", "int8")
    monkeypatch.setattr(backend_module, "missing", lambda *modules: f"one of {modules} is not installed")
    assert "('tensorrt', 'pycuda') is not installed" in TensorRtBackend.unavailable("cuda", "fp16")


def test_a_builder_without_a_runtime_is_named(monkeypatch):
    pytest.importorskip("tensorrt")
    monkeypatch.setattr(backend_module, "missing", lambda *modules: None)
    monkeypatch.setattr("sam3lab.nvml.gpu", lambda: None)
    assert "no NVIDIA GPU" in TensorRtBackend.unavailable("cuda", "fp16")
    monkeypatch.setattr("sam3lab.nvml.gpu", lambda: SimpleNamespace())
    monkeypatch.setattr(engine, "library_version", lambda: 10701)
    assert "only builds engines" in TensorRtBackend.unavailable("cuda", "fp16")
    monkeypatch.setattr(engine, "library_version", lambda: 110400)
    assert TensorRtBackend.unavailable("cuda", "fp16") is None


@pytest.mark.parametrize("error", ["ImportError", "OSError"])
def test_a_broken_installation_is_a_reason(monkeypatch, tmp_path, error):
    (tmp_path / "tensorrt.py").write_text(f"raise {error}('libnvinfer.so.11: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.setattr(backend_module, "missing", lambda *modules: None)
    monkeypatch.setattr("sam3lab.nvml.gpu", lambda: SimpleNamespace())
    reason = TensorRtBackend.unavailable("cuda", "fp16")
    assert re.search(r"TensorRT cannot be imported \(libnvinfer.*pip install", reason)
    with pytest.raises(UserError, match="cannot be imported"):
        engine.machine()


def test_it_is_found_by_its_place():
    assert backends.get("sam3lab.backends.tensorrt:TensorRtBackend").name == "tensorrt"


# On a GPU.


@pytest.fixture
def device():
    cuda = pytest.importorskip("pycuda.driver", reason="needs PyCUDA", exc_type=ImportError)
    try:
        cuda.init()
        count = cuda.Device.count()
    except cuda.Error as error:
        pytest.skip(f"no CUDA device: {error}")
    if not count:
        pytest.skip("no CUDA device")
    device = pycuda_device.Device()
    yield device
    if hasattr(device, "_stream"):  # not closed by the test itself
        device.close()


@pytest.fixture
def torch():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch sees no CUDA device")
    torch.zeros(1, device="cuda")
    return torch


@pytest.mark.parametrize("dtype", ["uint8", "int64", "bool", "float16", "float32", "bfloat16"])
def test_gpu_round_trip_through_page_locked_memory(device, dtype):
    import ml_dtypes

    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    array = (np.arange(3 * 5 * 7).reshape(3, 5, 7) % 97).astype(kind)
    kept = array.copy()
    value = device.upload(array.transpose(2, 0, 1))  # not contiguous
    array[...] = 0
    back = device.download(value)
    assert back.dtype == kind and back.shape == (7, 3, 5)
    np.testing.assert_array_equal(back.astype(np.float32), kept.transpose(2, 0, 1).astype(np.float32))
    assert device.download(value, np.float64).dtype == np.float64


def test_gpu_uploads_do_not_disturb_each_other(device):
    arrays = [np.full(1 << 20, number, dtype=np.int32) for number in range(20)]
    values = [device.upload(array) for array in arrays]
    for value, array in zip(values, arrays, strict=True):
        np.testing.assert_array_equal(device.download(value), array)


def test_gpu_pool_reuses_memory(device):
    import pycuda.driver as cuda

    first = device.empty((1 << 20,), np.float32)
    address = first.address
    assert address % ALIGNMENT == 0
    del first
    assert device.empty((1 << 20,), np.float32).address == address
    array = np.zeros((8, 1 << 20), dtype=np.uint8)
    device.download(device.upload(array))
    device.synchronize()
    free = cuda.mem_get_info()[0]
    for _ in range(50):
        device.download(device.copy(device.upload(array)))
    assert free - cuda.mem_get_info()[0] <= 2 * array.nbytes  # one copy, and what the pool rounds up
    large = device.empty((1 << 30,), np.uint8)
    taken = cuda.mem_get_info()[0]
    del large
    assert cuda.mem_get_info()[0] == taken  # the pool holds it
    device.give_back()
    assert cuda.mem_get_info()[0] - taken >= 1 << 30


def test_gpu_context_is_pytorchs(device, torch):
    import pycuda.driver as cuda

    tensor = torch.arange(1000, dtype=torch.float32, device="cuda")
    torch.cuda.synchronize()
    host = np.empty(1000, dtype=np.float32)
    cuda.memcpy_dtoh(host, tensor.data_ptr())  # by its address
    np.testing.assert_array_equal(host, np.arange(1000))

    value = device.upload(np.arange(1000, dtype=np.float32)[::-1])
    device.synchronize()
    interface = {"shape": value.shape, "typestr": "<f4", "data": (value.address, False), "version": 3}
    seen = torch.as_tensor(SimpleNamespace(__cuda_array_interface__=interface), device="cuda")
    assert seen.data_ptr() == value.address
    assert torch.equal(seen.cpu(), torch.arange(1000, dtype=torch.float32).flip(0))
    seen.mul_(2)  # PyTorch writes, on the default stream, for which the device's stream waits
    np.testing.assert_array_equal(device.download(value), 2 * np.arange(1000)[::-1])


def test_gpu_graph_replays_on_what_lies_there_then(device):
    source, target = device.upload(np.arange(100)), device.upload(np.zeros(100, dtype=np.int64))
    device.write(target, source)
    graph = device.capture(lambda: device.write(target, source))
    device.write(target, device.upload(np.full(100, 7)))
    assert device.download(target)[5] == 7  # recorded, not run
    device.write(source, device.upload(np.arange(100) + 1))
    graph.launch()
    np.testing.assert_array_equal(device.download(target), np.arange(100) + 1)
    graph.close()


def test_gpu_failed_capture_leaves_the_stream_usable(device):
    def forbidden():
        device.synchronize()  # not permitted while a stream is captured

    with pytest.raises(Exception, match=r"(?i)captur|unsupported|90\d"):
        device.capture(forbidden)
    np.testing.assert_array_equal(device.download(device.upload(np.arange(10))), np.arange(10))

    def broken():
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        device.capture(broken)
    np.testing.assert_array_equal(device.download(device.upload(np.arange(10))), np.arange(10))


class EchoContext:
    """An execution context that copies each of the text stage's ids to its output, on the real stream."""

    def __init__(self):
        self.addresses, self.shape, self.runs = {}, None, 0

    def set_device_memory(self, memory, size):
        assert memory and size

    def set_optimization_profile_async(self, index, stream):
        return True

    def set_input_shape(self, name, shape):
        self.shape = shape
        return True

    def get_tensor_shape(self, name):
        return self.shape

    def set_tensor_address(self, name, memory):
        self.addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle):
        from sam3lab.backends.cuda_driver import call

        self.runs += 1
        size = int(np.prod(self.shape)) * 8
        pointers = (ctypes.c_void_p(self.addresses[name]) for name in ("text_features", "ids"))
        call("cuMemcpyDtoDAsync_v2", *pointers, ctypes.c_size_t(size), ctypes.c_void_p(stream_handle))
        return True


def test_gpu_stage_runs_as_a_graph_and_closes(device, torch, monkeypatch):
    """A stage of the backend on the real device, with a stand-in for the engine alone."""
    from sam3lab.backends.plans import Plans

    strategy = SimpleNamespace(USER_MANAGED=2)
    trt = SimpleNamespace(
        ExecutionContextAllocationStrategy=strategy, DataType=SimpleNamespace(BF16="bf16"), nptype=np.dtype
    )
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    contexts = []
    one = SimpleNamespace(
        create_execution_context=lambda strategy: contexts.append(EchoContext()) or contexts[-1],
        get_tensor_dtype=lambda name: "bool" if name == "mask" else "int64",
    )
    scratch = device.empty((1000,), np.uint8)

    def make(values, first):
        return backend_module._Run(device, one, "text", 0, values, scratch)

    plans = Plans(make, device.copy, lambda value: value.address)
    mask = device.upload(np.ones((2, 32), dtype=bool))
    ids = [device.upload(np.full((2, 32), number)) for number in range(6)]
    kept = plans.run(ids[0], mask)[0]
    for _ in range(3):
        for number, value in enumerate(ids):
            np.testing.assert_array_equal(device.download(plans.run(value, mask)[0]), np.full((2, 32), number))
    assert len(contexts) == 4  # three on the caller's memory, and one that is copied to
    assert [context.runs for context in contexts] == [3] * 4  # twice, and for the capture
    np.testing.assert_array_equal(device.download(kept), np.zeros((2, 32)))
    plans.close()
    device.close()
    assert torch.arange(5, device="cuda").sum().item() == 10


def test_gpu_closing_gives_memory_back_and_leaves_pytorch_working(device, torch):
    tensor = torch.arange(10, device="cuda")

    def pytorch_works():
        ones = torch.ones(64, 64, device="cuda")
        return (tensor * 2).sum().item() == 90 and (ones @ ones).mean().item() == 64

    assert pytorch_works()  # and has loaded what it needs
    free = torch.cuda.mem_get_info()[0]
    for _ in range(2):
        value = device.upload(np.zeros(256 << 20, dtype=np.uint8))
        device.synchronize()
        assert free - torch.cuda.mem_get_info()[0] >= 256 << 20
        del value
        device.close()
        assert free - torch.cuda.mem_get_info()[0] <= 8 << 20
        assert pytorch_works()
        device.__init__()  # and it can be opened again
    np.testing.assert_array_equal(device.download(device.upload(np.arange(3))), np.arange(3))


ALONE = """
import numpy as np, pycuda.driver as cuda
from sam3lab.backends.pycuda_device import Device
try:
    cuda.init()
    count = cuda.Device.count()
except cuda.Error:
    count = 0
for closes in (True, True, False) if count else ():
    device = Device()
    assert device.download(device.upload(np.arange(9))).sum() == 36
    if closes:
        device.close()
print("ended" if count else "none")
"""


def test_gpu_alone_without_pytorch():
    """In a process that never imports torch: closed and opened again, and left open at the end."""
    pytest.importorskip("pycuda.driver", exc_type=ImportError)
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True)
    if done.stdout.strip() == "none":
        pytest.skip("no CUDA device")
    assert (done.returncode, done.stdout.strip()) == (0, "ended"), done.stderr
    assert "PyCUDA" not in done.stderr  # its complaints of contexts and clean-up
