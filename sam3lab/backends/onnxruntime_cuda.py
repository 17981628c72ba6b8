"""ONNX Runtime's CUDA provider: the stages on one stream, each as CUDA graphs, bound to values where they lie."""

import itertools
import math
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
# the input whose first axes outputs have as their one first axis
_ROWS = {"image": ("pixels", 1), "text": ("ids", 1), "detect": ("text_index", 2)}


class Value:
    """A tensor on the device, in the shape given if it is not the OrtValue's own. host: an index as it was uploaded."""

    def __init__(self, ort: Any, shape: tuple[int, ...] | None = None, host: np.ndarray | None = None):
        self.ort, self._shape, self.host = ort, shape, host

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape or tuple(self.ort.shape())

    @property
    def dtype(self) -> int:
        """One of onnx.TensorProto.DataType."""
        return self.ort.element_type()

    @property
    def address(self) -> int:
        return self.ort.data_ptr()


class Maps(Value):
    """Feature maps, which the graphs have as [B,h,w,C]; on the host they are [B,C,h,w]."""


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
        self._maps: dict[int, tuple[Value, ...]] = {}  # by the number of pairs that they were copied for
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
        """Floating-point values of four axes are feature maps."""
        import onnxruntime as ort

        maps = array.ndim == 4 and array.dtype.kind == "f"
        array = np.ascontiguousarray(array.transpose(0, 2, 3, 1) if maps else array)
        own = ort.OrtValue.ortvalue_from_numpy(array, "cuda", 0)
        return Maps(own) if maps else Value(own, host=array.copy() if array.ndim == 1 else None)

    def download(self, value: Value) -> np.ndarray:
        """Floating-point values as float32."""
        array = self.fetch(value)
        if isinstance(value, Maps):
            array = np.ascontiguousarray(array.transpose(0, 3, 1, 2))
        return array.astype(np.float32, copy=False) if array.dtype.kind == "f" else array

    def fetch(self, value: Value) -> np.ndarray:
        self._stream.synchronize()
        return value.ort.numpy()

    def stack(self, parts: Sequence[tuple[Value, tuple[int, ...]]]) -> Value:
        value, index = parts[0]
        own = type(value)(_empty((len(parts), *value.shape[len(index) :]), value.dtype))
        self._fill(own, parts)
        return own

    def nbytes(self, value: Value) -> int:
        return value.ort.tensor_size_in_bytes()

    def run(self, stage: str, *values: Value) -> tuple[Value, ...]:
        if stage == "detect":
            values = self._by_image(*values)
        return self._plans[stage].run(*values)

    def _by_image(self, fine, middle, coarse, text, mask, image_index: Value, text_index: Value) -> tuple[Value, ...]:
        """The values of the detector's graph, which has as many pairs of every image, image by image. Where they are
        others, features are copied, so that each pair has an image of its own."""
        maps, wanted, images = (fine, middle, coarse), image_index.host, fine.shape[0]
        if not image_by_image(wanted, images):
            images = len(wanted)
            if images not in self._maps:  # in the same memory each time, where a graph finds them
                self._maps[images] = tuple(Value(_empty((images, *map.shape[1:]), map.dtype)) for map in maps)
            for own, map in zip(self._maps[images], maps, strict=True):
                self._fill(own, [(map, (image,)) for image in wanted])
            maps = self._maps[images]
        return *maps, text, mask, Value(text_index.ort, (images, len(wanted) // images))

    def _fill(self, own: Value, parts: Sequence[tuple[Value, tuple[int, ...]]]) -> None:
        size = own.ort.tensor_size_in_bytes() // len(parts)
        for row, (value, index) in enumerate(parts):
            place = int(np.ravel_multi_index(index, value.shape[: len(index)]))
            self._stream.copy(own.address + row * size, value.address + place * size, size)

    def synchronize(self) -> None:
        self._stream.synchronize()

    @property
    def stream(self) -> int:
        """The address of the stream that everything is enqueued on."""
        return self._stream.address

    def close(self) -> None:
        self.synchronize()
        self._plans.clear()
        self._maps.clear()
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

    def __init__(self, session: Any, inputs: Sequence[Value], rows: tuple[str, int], number: int, stream: Stream):
        import onnxruntime as ort

        super().__init__(tuple(value.address for value in inputs))
        self._session, self._inputs, self._stream = session, [Value(value.ort) for value in inputs], stream
        self._kind = Maps if rows == _ROWS["image"] else Value
        self._binding, names = session.io_binding(), [each.name for each in session.get_inputs()]
        for name, value in zip(names, inputs, strict=True):
            self._binding.bind_input(name, "cuda", 0, value.dtype, value.shape, value.address)
        (name, axes), self._outputs = rows, []
        count = math.prod(inputs[names.index(name)].shape[:axes])
        for each in session.get_outputs():
            self._outputs.append(_empty((count, *each.shape[1:]), _ONNX_TYPES[each.type]))
            self._binding.bind_ortvalue_output(each.name, self._outputs[-1])
        self._options = ort.RunOptions()
        self._options.add_run_config_entry("gpu_graph_id", str(number))
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def enqueue(self) -> Iterable[Value]:
        self._session.run_with_iobinding(self._binding, self._options)
        return map(self._kind, self._outputs)

    def fill(self, values: Sequence[Value]) -> None:
        for own, value in zip(self._inputs, values, strict=True):
            self._stream.copy(own.address, value.address, value.ort.tensor_size_in_bytes())

    def move(self, value: Value) -> None:
        own = _empty(value.shape, value.dtype)
        self._stream.copy(own.data_ptr(), value.address, own.tensor_size_in_bytes())
        value.ort = own


def image_by_image(image_index: np.ndarray, images: int) -> bool:
    """Whether pairs have these images in order, each as often as the others: 0 0 0 1 1 1 …"""
    each = len(image_index) // images
    return np.array_equal(image_index, np.repeat(np.arange(images), each))


def _empty(shape: tuple[int, ...], dtype: int) -> Any:
    import onnxruntime as ort

    return ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype, "cuda", 0)
