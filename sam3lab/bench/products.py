"""Large copies and large products of matrices, the two things that bench.ceilings times, under each library."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from sam3lab.backends.torch_base import missing
from sam3lab.bench import environment

COPY_BYTES = {"cpu": 2**29, "cuda": 2**32}
SIDE = {"cpu": 1536, "cuda": 8192}
# On a GPU, of calls one after another: what launching and waiting take is then nothing beside them.
REPEATS = {"cpu": 1, "cuda": 8}


@dataclass(frozen=True)
class Load:
    """`call` does `work`, in bytes or operations; `size` is the bytes copied once or the side n of the matrices."""

    ceiling: str
    precision: str
    library: str
    unit: str
    size: int
    work: float
    call: Callable[[], Any]
    synchronize: Callable[[], None] = lambda: None


def loads(device: str, threads: int) -> Iterator[Load]:
    """Each is made when its turn comes and is to be let go of then: numerics and memory are those of the process."""
    yield from _torch(device, threads)
    if device == "cpu":
        yield from _numpy()
        if missing("onnxruntime") is None:
            yield from _onnxruntime(threads)
        if missing("openvino") is None:
            yield from _openvino(threads)


def _torch(device: str, threads: int) -> Iterator[Load]:
    import torch

    torch.set_num_threads(threads)
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    size, n, repeats = COPY_BYTES[device], SIDE[device], REPEATS[device]

    def repeated(call: Callable[[], Any]) -> None:
        for _ in range(repeats):
            call()

    source = torch.ones(size, dtype=torch.uint8, device=device)
    copy = partial(repeated, partial(torch.empty_like(source).copy_, source))
    yield Load("copy", "bytes", "torch", "GB/s", size, 2 * size * repeats, copy, synchronize)

    for precision in (
        ("fp32", "tf32", "bf16", "fp16") if device == "cuda" else ("fp32", "bf16") if _bf16() else ("fp32",)
    ):
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        product = partial(repeated, partial(torch.mm, a, b, out=torch.empty_like(a)))
        yield Load("matmul", precision, "torch", "GFLOP/s", n, 2 * n**3 * repeats, product, synchronize)


def _numpy() -> Iterator[Load]:
    n = SIDE["cpu"]
    a, b = _matrices(n)
    yield _product("fp32", "numpy", n, partial(np.matmul, a, b, out=np.empty_like(a)))


def _onnxruntime(threads: int) -> Iterator[Load]:
    import onnxruntime as ort

    n = SIDE["cpu"]
    a, b = _matrices(n)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(_graph(b), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_ortvalue_input("a", ort.OrtValue.ortvalue_from_numpy(a))
    binding.bind_ortvalue_output("c", ort.OrtValue.ortvalue_from_numpy(np.empty_like(a)))
    yield _product("fp32", "onnxruntime", n, partial(session.run_with_iobinding, binding))


def _openvino(threads: int) -> Iterator[Load]:
    import openvino

    n = SIDE["cpu"]
    a, b = _matrices(n)
    core = openvino.Core()
    model = core.read_model(_graph(b))
    offered = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    for precision, hint in (("fp32", "f32"), ("bf16", "bf16")):
        if precision.upper() in offered:
            hints = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
            request = core.compile_model(model, "CPU", hints).create_infer_request()
            request.set_input_tensor(openvino.Tensor(a))
            yield _product(precision, "openvino", n, request.infer)


def _product(precision: str, library: str, n: int, call: Callable[[], Any]) -> Load:
    return Load("matmul", precision, library, "GFLOP/s", n, 2 * n**3, call)


def _matrices(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, n), np.float32), rng.standard_normal((n, n), np.float32)


def _graph(b: np.ndarray) -> bytes:
    """An ONNX model of the product of its input with b, which it holds, as a layer its weights."""
    from onnx import TensorProto, helper, numpy_helper

    sides = list(b.shape)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "b"], ["c"])],
        "product",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, sides)],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, sides)],
        [numpy_helper.from_array(b, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return model.SerializeToString()


def _bf16() -> bool:
    return bool({"avx512_bf16", "amx_bf16"} & set(environment.cpu()["cpu_isa"].split()))
