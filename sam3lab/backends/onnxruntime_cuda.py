"""ONNX Runtime's CUDA provider: the stages on one stream, each as CUDA graphs, bound to values where they lie."""

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sam3lab.backends.cuda_driver import Stream
from sam3lab.backends.plans import Plan, Plans

PROVIDER = "CUDAExecutionProvider"
# It turns products with a bias into Gemm, whose kernel writes the bias to the output first, reads it back, and leaves
# nothing to fuse with the GELU or layer norm that follows.
DISABLED = ["MatMulAddFusion"]
_ONNX_TYPES = {"tensor(float)": 1, "tensor(float16)": 10}  # onnx.TensorProto.DataType
_ROWS = {"image": "pixels", "text": "ids", "detect": "image_index"}  # whose first axis is that of a stage's outputs


class Value:
    """A tensor on the device."""

    def __init__(self, ort: Any):
        self.ort = ort

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.ort.shape())

    @property
    def dtype(self) -> int:
        """One of onnx.TensorProto.DataType."""
        return self.ort.element_type()

    @property
    def address(self) -> int:
        return self.ort.data_ptr()


class CudaStages:
    """The sessions of the three stages. Calls enqueue and return."""

    def __init__(self, graphs: Path, options: Any, precision: str):
        import onnxruntime as ort

        ort.preload_dlls()  # CUDA and cuDNN from the packages that torch installs
        self._stream = Stream()
        provider = {
            "user_compute_stream": str(self._stream.address),
            "enable_cuda_graph": "1",
            # unasked, it computes float32 products in TF32; where asked not to, its convolutions of any type leave the
            # tensor cores alone, so that half precision asks for it too
            "use_tf32": "0" if precision == "fp32" else "1",
            "arena_extend_strategy": "kSameAsRequested",
        }
        self._sessions, self._plans, self._numbers = {}, {}, itertools.count(1)
        for stage in _ROWS:
            session = ort.InferenceSession(
                graphs / f"{stage}.onnx",
                options,
                providers=[(PROVIDER, provider), "CPUExecutionProvider"],
                disabled_optimizers=DISABLED,
            )
            if session.get_providers()[0] != PROVIDER:
                raise RuntimeError(f"ONNX Runtime put {stage} on {session.get_providers()[0]}, not on the GPU")
            self._sessions[stage] = session
            self._plans[stage] = Plans(
                make=lambda values, first, stage=stage: self._plan(stage, values),
                copy=self._copy,
                address=lambda value: value.address,
            )

    def upload(self, array: np.ndarray) -> Value:
        import onnxruntime as ort

        return Value(ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), "cuda", 0))

    def download(self, value: Value) -> np.ndarray:
        """Floating-point values as float32."""
        array = self.fetch(value)
        return array.astype(np.float32, copy=False) if array.dtype.kind == "f" else array

    def fetch(self, value: Value) -> np.ndarray:
        self._stream.synchronize()
        return value.ort.numpy()

    def stack(self, parts: Sequence[tuple[Value, tuple[int, ...]]]) -> Value:
        value, index = parts[0]
        rest = value.shape[len(index) :]
        own = Value(_empty((len(parts), *rest), value.dtype))
        size = own.ort.tensor_size_in_bytes() // len(parts)
        for row, (value, index) in enumerate(parts):
            place = int(np.ravel_multi_index(index, value.shape[: len(index)]))
            self._stream.copy(own.address + row * size, value.address + place * size, size)
        return own

    def nbytes(self, value: Value) -> int:
        return value.ort.tensor_size_in_bytes()

    def run(self, stage: str, *values: Value) -> tuple[Value, ...]:
        return self._plans[stage].run(*values)

    def synchronize(self) -> None:
        self._stream.synchronize()

    @property
    def stream(self) -> int:
        """The address of the stream that everything is enqueued on."""
        return self._stream.address

    def close(self) -> None:
        self.synchronize()
        self._plans.clear()
        self._sessions.clear()
        self._stream.close()

    def _plan(self, stage: str, values: Sequence[Value]) -> Plan:
        return _Run(self._sessions[stage], values, _ROWS[stage], next(self._numbers), self._stream)

    def _copy(self, value: Value) -> Value:
        own = Value(_empty(value.shape, value.dtype))
        self._stream.copy(own.address, value.address, value.ort.tensor_size_in_bytes())
        return own


class _Run(Plan):
    """One session bound to values on the device. Its first run is recorded as a CUDA graph, which later runs replay."""

    def __init__(self, session: Any, inputs: Sequence[Value], rows: str, number: int, stream: Stream):
        import onnxruntime as ort

        super().__init__(tuple(value.address for value in inputs))
        self._session, self._inputs, self._stream = session, [Value(value.ort) for value in inputs], stream
        self._binding, names = session.io_binding(), [each.name for each in session.get_inputs()]
        for name, value in zip(names, inputs, strict=True):
            self._binding.bind_ortvalue_input(name, value.ort)
        count = inputs[names.index(rows)].shape[0]
        self._outputs = []
        for each in session.get_outputs():
            self._outputs.append(_empty((count, *each.shape[1:]), _ONNX_TYPES[each.type]))
            self._binding.bind_ortvalue_output(each.name, self._outputs[-1])
        self._options = ort.RunOptions()
        self._options.add_run_config_entry("gpu_graph_id", str(number))
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def enqueue(self) -> Iterable[Value]:
        self._session.run_with_iobinding(self._binding, self._options)
        return (Value(output) for output in self._outputs)

    def fill(self, values: Sequence[Value]) -> None:
        for own, value in zip(self._inputs, values, strict=True):
            self._stream.copy(own.address, value.address, value.ort.tensor_size_in_bytes())

    def move(self, value: Value) -> None:
        own = _empty(value.shape, value.dtype)
        self._stream.copy(own.data_ptr(), value.address, own.tensor_size_in_bytes())
        value.ort = own


def _empty(shape: tuple[int, ...], dtype: int) -> Any:
    import onnxruntime as ort

    return ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype, "cuda", 0)
