"""OpenVINO on the same ONNX graphs, compiled for the CPU."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sam3lab.backends.base import Artifacts, RawOutputs, gathered, total_bytes
from sam3lab.backends.torch_base import missing, unsupported
from sam3lab.cores import available_cores
from sam3lab.paths import cache_dir

HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}  # of what int8 graphs leave in float
CAPABILITIES = {"fp32": "FP32", "bf16": "BF16", "fp16": "FP16", "int8": "INT8"}


class OpenVinoBackend:
    """One compiled model a stage. Outputs go straight into memory of their own, so that no later call overwrites them."""

    name = "openvino"

    @classmethod
    def unavailable(cls, device: str = "cpu", precision: str = "fp32") -> str | None:
        reason = missing("openvino") or unsupported(device, precision, {"cpu": tuple(HINTS)})
        if reason is None:
            import openvino

            offered = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
            if CAPABILITIES[precision] not in offered:
                reason = f"OpenVINO offers no {precision} on this CPU (it lacks the instructions)"
        return reason

    @classmethod
    def prepare(cls, artifacts: Artifacts) -> Artifacts:
        from sam3lab.export.cache import exported

        artifacts = replace(artifacts, graphs=exported(artifacts, "int8" if artifacts.precision == "int8" else "fp32"))
        cls().load(artifacts)  # fills the cache of compiled models
        return artifacts

    def load(self, artifacts: Artifacts) -> None:
        import openvino

        core = openvino.Core()
        # unasked, OpenVINO may compute in bf16 where the CPU can
        hints = {
            "INFERENCE_PRECISION_HINT": HINTS[artifacts.precision],
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": artifacts.threads or available_cores(),
            "CACHE_DIR": str(cache_dir("openvino")),
        }
        self.requests = {
            stage: core.compile_model(artifacts.graphs / f"{stage}.onnx", "CPU", hints).create_infer_request()
            for stage in ("image", "text", "detect")
        }

    def upload(self, array: np.ndarray) -> Any:
        import openvino

        return openvino.Tensor(np.array(array, order="C"))

    def download(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(self.download(part) for part in value)
        return value.data.copy()

    fetch = download

    def gather(self, parts: Sequence[tuple[Any, tuple[int, ...]]]) -> Any:
        return gathered(parts, lambda each: self.upload(np.stack([value.data[index] for value, index in each])))

    def nbytes(self, value: Any) -> int:
        return total_bytes(value, lambda each: each.byte_size)

    def image(self, pixels: Any) -> Any:
        return tuple(self._run("image", pixels.shape[0], pixels))

    def text(self, ids: Any, mask: Any) -> Any:
        return self._run("text", ids.shape[0], ids, mask)[0]

    def detect(self, features: Any, text: Any, mask: Any, image_index: Any, text_index: Any) -> RawOutputs:
        pairs = image_index.shape[0]
        return RawOutputs(*self._run("detect", pairs, *features, text, mask, image_index, text_index))

    def _run(self, stage: str, rows: int, *values: Any) -> list:
        """Run a stage; `rows` is the size of its outputs' first axis, the only one that the graph leaves open."""
        import openvino

        request = self.requests[stage]
        for index, value in enumerate(values):
            request.set_input_tensor(index, value)
        results = []
        for index, port in enumerate(request.model_outputs):
            shape = [rows, *(axis.get_length() for axis in list(port.get_partial_shape())[1:])]
            results.append(openvino.Tensor(port.get_element_type(), openvino.Shape(shape)))
            request.set_output_tensor(index, results[-1])
        request.infer()
        return results

    def synchronize(self) -> None:
        """Nothing is pending: a request returns only when it is done."""

    def close(self) -> None:
        self.__dict__.clear()
