"""ONNX Runtime on the exported graphs, with I/O binding: under its CPU provider here, under CUDA in onnxruntime_cuda."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sam3lab import install
from sam3lab.backends.base import Artifacts, RawOutputs, gathered, total_bytes
from sam3lab.backends.torch_base import missing, no_gpu, unsupported
from sam3lab.cores import available_cores

PRECISIONS = {"cpu": ("fp32", "int8"), "cuda": ("fp32", "tf32", "fp16")}
NO_BF16 = (
    "ONNX Runtime's CUDA provider has no bfloat16 kernel for several operators, ConvTranspose among them: use fp16"
)
GRAPHS = {"fp16": "fp16", "int8": "int8"}  # those of the other precisions are float32
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
STAGES = ("image", "text", "detect")


class CpuStages:
    """One InferenceSession a stage under the CPU provider; values are OrtValues."""

    def __init__(self, graphs: Path, options: Any):
        import onnxruntime as ort

        providers = [PROVIDERS["cpu"]]
        self._sessions = {
            stage: ort.InferenceSession(graphs / f"{stage}.onnx", options, providers=providers) for stage in STAGES
        }

    def upload(self, array: np.ndarray) -> Any:
        import onnxruntime as ort

        # Memory of ONNX Runtime's own, which what `numpy` gives keeps: of a value made from an array it would dangle.
        value = ort.OrtValue.ortvalue_from_shape_and_type(array.shape, array.dtype, "cpu", 0)
        value.numpy()[...] = array
        return value

    def download(self, value: Any) -> np.ndarray:
        return value.numpy()

    fetch = download

    def stack(self, parts: Sequence[tuple[Any, tuple[int, ...]]]) -> Any:
        return self.upload(np.stack([value.numpy()[index] for value, index in parts]))  # `numpy` copies nothing

    def nbytes(self, value: Any) -> int:
        return value.tensor_size_in_bytes()

    def run(self, stage: str, *values: Any) -> list:
        session = self._sessions[stage]
        binding = session.io_binding()
        for each, value in zip(session.get_inputs(), values, strict=True):
            binding.bind_ortvalue_input(each.name, value)
        for each in session.get_outputs():
            binding.bind_output(each.name, "cpu")
        session.run_with_iobinding(binding)
        return binding.get_outputs()

    def synchronize(self) -> None:
        """Nothing is pending: a run returns only when it is done."""

    def close(self) -> None:
        self._sessions.clear()


class OnnxRuntimeBackend:
    """ONNX Runtime with all its graph optimisations; its subclasses stop at lower levels of them, to be measured too."""

    name = "onnxruntime"
    level = "ORT_ENABLE_ALL"

    @classmethod
    def unavailable(cls, device: str = "cpu", precision: str = "fp32") -> str | None:
        if (device, precision) == ("cuda", "bf16"):
            return NO_BF16
        reason = missing("onnxruntime") or unsupported(device, precision, PRECISIONS)
        if reason is None:
            import onnxruntime

            if PROVIDERS[device] not in onnxruntime.get_available_providers():
                reason = f"this build of ONNX Runtime has no {PROVIDERS[device]}: {install.remedy('gpu')}"
            elif device == "cuda":
                reason = no_gpu("ONNX Runtime's CUDA provider")
        return reason

    @classmethod
    def prepare(cls, artifacts: Artifacts) -> Artifacts:
        from sam3lab.export.cache import exported
        from sam3lab.export.onnx import ORT_CUDA, PORTABLE

        target = ORT_CUDA if artifacts.device == "cuda" else PORTABLE
        return replace(artifacts, graphs=exported(artifacts, GRAPHS.get(artifacts.precision, "fp32"), target))

    def load(self, artifacts: Artifacts) -> None:
        import onnxruntime as ort

        ort.set_default_logger_severity(3)
        options = ort.SessionOptions()
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, self.level)
        options.intra_op_num_threads = artifacts.threads or available_cores()
        if artifacts.device == "cuda":
            from sam3lab.backends.onnxruntime_cuda import CudaStages

            self._stages = CudaStages(artifacts.graphs, options, artifacts.precision)
            self.stream = self._stages.stream
            return
        # else the threads of the stage that ran last go on spinning on the cores that the next stage needs
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if artifacts.precision == "int8":
            # without VNNI, products of unsigned and signed bytes saturate at 16 bits; this computes them as unsigned ones
            options.add_session_config_entry("session.x64quantprecision", "1")
        self._stages = CpuStages(artifacts.graphs, options)

    def upload(self, array: np.ndarray) -> Any:
        return self._stages.upload(array)

    def download(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(self.download(part) for part in value)
        return self._stages.download(value)

    def fetch(self, value: Any) -> np.ndarray:
        return self._stages.fetch(value)

    def image(self, pixels: Any) -> Any:
        return tuple(self._stages.run("image", pixels))

    def text(self, ids: Any, mask: Any) -> Any:
        return self._stages.run("text", ids, mask)[0]

    def detect(self, features: Any, text: Any, mask: Any, image_index: Any, text_index: Any) -> RawOutputs:
        return RawOutputs(*self._stages.run("detect", *features, text, mask, image_index, text_index))

    def gather(self, parts: Sequence[tuple[Any, tuple[int, ...]]]) -> Any:
        return gathered(parts, self._stages.stack)

    def nbytes(self, value: Any) -> int:
        return total_bytes(value, self._stages.nbytes)

    def synchronize(self) -> None:
        self._stages.synchronize()

    def close(self) -> None:
        if "_stages" in self.__dict__:
            self._stages.close()
        self.__dict__.clear()


class Unoptimised(OnnxRuntimeBackend):
    """No graph optimisation."""

    name = "onnxruntime-unoptimised"
    level = "ORT_DISABLE_ALL"


class Basic(OnnxRuntimeBackend):
    """Constant folding and the removal of what is redundant."""

    name = "onnxruntime-basic"
    level = "ORT_ENABLE_BASIC"


class Extended(OnnxRuntimeBackend):
    """Fusions too, but no change of memory layout."""

    name = "onnxruntime-extended"
    level = "ORT_ENABLE_EXTENDED"
