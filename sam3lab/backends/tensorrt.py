"""TensorRT on engines built from the exported graphs, run through PyCUDA, each stage as CUDA graphs."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from sam3lab import install
from sam3lab.backends import pycuda_device
from sam3lab.backends.base import Artifacts, RawOutputs, gathered, total_bytes
from sam3lab.backends.plans import Plan, Plans
from sam3lab.backends.pycuda_device import DeviceArray
from sam3lab.backends.torch_base import missing, no_gpu, unsupported
from sam3lab.errors import UserError

PRECISIONS = {"cuda": ("fp32", "tf32", "bf16", "fp16")}
_INT8 = (
    "TensorRT takes INT8 activations only signed and without a zero point, and the INT8 graphs here have unsigned ones, "
    "which suit the other runtimes: use fp16"
)
_SETTLED = 2  # runs after which a context sets up nothing more, so that one can be captured


class TensorRtBackend:
    """One engine a stage; values are arrays on the device."""

    name = "tensorrt"

    @classmethod
    def unavailable(cls, device: str = "cpu", precision: str = "fp32") -> str | None:
        if device == "cuda" and precision == "int8":
            return _INT8
        reason = unsupported(device, precision, PRECISIONS) or missing("tensorrt", "pycuda") or no_gpu("TensorRT")
        if reason is None:
            from sam3lab.export import engine

            try:
                if engine.builder_only():
                    reason = f"the installed tensorrt only builds engines, and cannot run them: {install.remedy('gpu')}"
            except UserError as error:  # it is installed, and broken
                reason = str(error)
        return reason

    @classmethod
    def prepare(cls, artifacts: Artifacts) -> Artifacts:
        from sam3lab.export import cache, engine
        from sam3lab.model.checkpoint import fingerprint

        given = artifacts.graphs
        if given is not None and engine.is_engines(given):
            found = engine.verify(given)
            wanted = {
                "checkpoint": fingerprint(artifacts.checkpoint),
                "resolution": artifacts.resolution,
                "precision": artifacts.precision,
            }
            for name, value in wanted.items():
                if found[name] != value:
                    raise UserError(f"{given} was built for {name} {found[name]}, not {value}: build it anew")
            return artifacts
        graphs = cache.exported(artifacts, engine.GRAPHS[artifacts.precision])
        return replace(artifacts, graphs=engine.engines(graphs, artifacts.precision, shown=True))

    def load(self, artifacts: Artifacts) -> None:
        from sam3lab.export import engine
        from sam3lab.export.engine_builder import last_error, logger

        found = engine.verify(artifacts.graphs)  # before anything in it is deserialised
        import tensorrt as trt

        self._profiles = found["options"]["profiles"]
        self._engines, self._scratch, self._plans = {}, {}, {}
        self.device = pycuda_device.Device()
        try:
            self._runtime = trt.Runtime(logger())
        except TypeError:  # what its bindings make of a null pointer
            raise RuntimeError(f"TensorRT's runtime does not start here: {last_error()}") from None
        for stage in ("image", "text", "detect"):
            path = artifacts.graphs / f"{stage}.engine"
            self._engines[stage] = self._runtime.deserialize_cuda_engine(path.read_bytes())
            if self._engines[stage] is None:
                raise RuntimeError(f"TensorRT could not read {path}: {last_error()}")
            self._plans[stage] = Plans(partial(self._plan, stage), self.device.copy, lambda value: value.address)

    @property
    def stream(self) -> int:
        """The address of the stream that everything is enqueued on."""
        return self.device.stream

    def upload(self, array: np.ndarray) -> Any:
        return self.device.upload(array)

    def download(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(self.download(part) for part in value)
        return self.device.download(value, None if value.dtype.kind in "biu" else np.float32)

    def fetch(self, value: Any) -> np.ndarray:
        return self.device.download(value, np.float32 if value.dtype.kind == "V" else None)  # bfloat16

    def image(self, pixels: Any) -> Any:
        return self._plans["image"].run(pixels)

    def text(self, ids: Any, mask: Any) -> Any:
        return self._plans["text"].run(ids, mask)[0]

    def detect(self, features: Any, text: Any, mask: Any, image_index: Any, text_index: Any) -> RawOutputs:
        return RawOutputs(*self._plans["detect"].run(*features, text, mask, image_index, text_index))

    def gather(self, parts: Sequence[tuple[Any, tuple[int, ...]]]) -> Any:
        return gathered(parts, self._stack)

    def nbytes(self, value: Any) -> int:
        return total_bytes(value, lambda each: each.nbytes)

    def _stack(self, parts: Sequence[tuple[DeviceArray, tuple[int, ...]]]) -> DeviceArray:
        pieces = [value.part(index) for value, index in parts]
        whole = self.device.empty((len(pieces), *pieces[0].shape), pieces[0].dtype)
        for row, piece in enumerate(pieces):
            self.device.write(whole.part((row,)), piece)
        return whole

    def _plan(self, stage: str, values: Sequence[DeviceArray], first: bool) -> Plan:
        from sam3lab.export.engine_profiles import choose
        from sam3lab.export.onnx import INPUTS

        sizes = {axis: value.shape[0] for axis, value in zip(INPUTS[stage].values(), values, strict=True)}
        profile = choose(self._profiles, sizes)
        if profile not in self._scratch:  # one for all stages, whose work is enqueued on one stream
            needs = [engine.get_device_memory_size_for_profile_v2(profile) for engine in self._engines.values()]
            self._scratch[profile] = self.device.empty((max(1, *needs),), np.uint8)
        return _Run(self.device, self._engines[stage], stage, profile, values, self._scratch[profile])

    def synchronize(self) -> None:
        self.device.synchronize()

    def give_back(self) -> None:
        """Free what is kept for later calls alone: contexts, their graphs and outputs, scratch memory, the pools' blocks."""
        self.device.synchronize()
        for plans in self._plans.values():
            plans.close()
        self._scratch.clear()
        self.device.give_back()

    def close(self) -> None:
        """In the order in which one thing needs the other: graphs and contexts, engines, runtime, memory, CUDA's context."""
        if "device" in self.__dict__:
            device = self.device
            self.give_back()
            self._engines.clear()
            self.__dict__.clear()
            device.close()


class _Run(Plan):
    """An execution context of its own, as TensorRT advises for each captured graph, that reads and writes fixed addresses.

    The first runs are enqueued by TensorRT, which sets itself up in them; later ones replay one as a CUDA graph. All
    contexts share scratch memory.
    """

    def __init__(
        self,
        device: pycuda_device.Device,
        engine: Any,
        stage: str,
        profile: int,
        values: Sequence[DeviceArray],
        scratch: DeviceArray,
    ):
        import tensorrt as trt

        from sam3lab.export.engine_builder import last_error
        from sam3lab.export.onnx import INPUTS, OUTPUTS

        super().__init__(tuple(value.address for value in values))
        self._device, self._stage, self._runs, self._graph = device, stage, 0, None
        self._inputs = [value.alias() for value in values]
        self._context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if self._context is None:  # there was no memory for it
            raise RuntimeError(f"TensorRT's {stage} stage got no execution context: {last_error()}")
        self._must(self._context.set_optimization_profile_async(profile, device.stream), f"profile {profile}")
        device.synchronize()
        for name, value in zip(INPUTS[stage], values, strict=True):
            if value.dtype != (wanted := _dtype(engine.get_tensor_dtype(name))):
                raise RuntimeError(f"TensorRT's {stage} stage has {name} in {wanted}, not in {value.dtype}")
            self._must(self._context.set_input_shape(name, value.shape), f"{name} of shape {value.shape}")
        self._context.set_device_memory(scratch.address, scratch.nbytes)
        self._outputs = [
            device.empty(self._context.get_tensor_shape(name), _dtype(engine.get_tensor_dtype(name)))
            for name in OUTPUTS[stage]
        ]
        for name, value in zip((*INPUTS[stage], *OUTPUTS[stage]), (*self._inputs, *self._outputs), strict=True):
            self._must(self._context.set_tensor_address(name, value.address), f"the address of {name}")

    def enqueue(self) -> Iterable[DeviceArray]:
        if self._runs == _SETTLED and not self._graph:
            self._capture()
        if self._graph:
            self._graph.launch()
        else:
            self._execute()
        self._runs += 1
        return (output.alias() for output in self._outputs)

    def fill(self, values: Sequence[DeviceArray]) -> None:
        for own, value in zip(self._inputs, values, strict=True):
            self._device.write(own, value)

    def move(self, value: DeviceArray) -> None:
        value.block = self._device.copy(value).block

    def close(self) -> None:
        self._device.synchronize()
        if self._graph:
            self._graph.close()
        self.__dict__.clear()

    def _execute(self) -> None:
        self._must(self._context.execute_async_v3(self._device.stream), "its work")

    def _capture(self) -> None:
        self._device.synchronize()
        try:
            self._graph = self._device.capture(self._execute)
        except RuntimeError as error:
            warnings.warn(f"TensorRT's {self._stage} stage runs without a CUDA graph: {error}", stacklevel=2)

    def _must(self, accepted: bool, what: str) -> None:
        if not accepted:
            from sam3lab.export.engine_builder import last_error

            raise RuntimeError(f"TensorRT's {self._stage} stage did not take {what}: {last_error()}")


def _dtype(kind: Any) -> np.dtype:
    """NumPy's dtype for a tensorrt.DataType; bfloat16 is that of ml_dtypes, which comes with onnx."""
    import tensorrt as trt

    if kind == trt.DataType.BF16:
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(trt.nptype(kind))
