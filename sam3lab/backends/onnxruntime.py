"""ONNX Runtime on the exported graphs, with every graph optimisation and I/O binding."""

from dataclasses import replace
from typing import Any

import numpy as np

from sam3lab.backends.base import Artifacts, RawOutputs
from sam3lab.backends.torch_base import missing, unsupported
from sam3lab.cores import available_cores

PRECISIONS = {"cpu": ("fp32", "int8"), "cuda": ("fp32", "tf32", "fp16")}
GRAPHS = {"fp16": "fp16", "int8": "int8"}  # those of the other precisions are float32
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxRuntimeBackend:
    """One InferenceSession a stage; values are OrtValues, which stay on the device between the stages."""

    name = "onnxruntime"

    @classmethod
    def unavailable(cls, device: str = "cpu", precision: str = "fp32") -> str | None:
        reason = missing("onnxruntime") or unsupported(device, precision, PRECISIONS)
        if reason is None:
            import onnxruntime

            if PROVIDERS[device] not in onnxruntime.get_available_providers():
                reason = f"this build of ONNX Runtime has no {PROVIDERS[device]}: pip install sam3lab[gpu]"
        return reason

    @classmethod
    def prepare(cls, artifacts: Artifacts) -> Artifacts:
        from sam3lab.export.cache import exported

        return replace(artifacts, graphs=exported(artifacts, GRAPHS.get(artifacts.precision, "fp32")))

    def load(self, artifacts: Artifacts) -> None:
        import onnxruntime as ort

        ort.set_default_logger_severity(3)
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads = artifacts.threads or available_cores()
        # else the threads of the stage that ran last go on spinning on the cores that the next stage needs
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if artifacts.precision == "int8":
            # without VNNI, products of unsigned and signed bytes saturate at 16 bits; this computes them as unsigned ones
            options.add_session_config_entry("session.x64quantprecision", "1")
        providers: list = [PROVIDERS["cpu"]]
        if artifacts.device == "cuda":
            ort.preload_dlls()  # CUDA and cuDNN from the packages that torch installs
            # unasked, the CUDA provider computes float32 products in TF32
            providers.insert(0, (PROVIDERS["cuda"], {"use_tf32": str(int(artifacts.precision == "tf32"))}))
        self.device = artifacts.device
        self.sessions = {
            stage: ort.InferenceSession(artifacts.graphs / f"{stage}.onnx", options, providers=providers)
            for stage in ("image", "text", "detect")
        }
        for stage, session in self.sessions.items():
            if session.get_providers()[0] != PROVIDERS[artifacts.device]:
                raise RuntimeError(f"ONNX Runtime put {stage} on {session.get_providers()[0]}, not {artifacts.device}")
        self.inputs = {s: [i.name for i in session.get_inputs()] for s, session in self.sessions.items()}
        self.outputs = {s: [o.name for o in session.get_outputs()] for s, session in self.sessions.items()}

    def upload(self, array: np.ndarray) -> Any:
        import onnxruntime as ort

        return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self.device, 0)

    def download(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(self.download(part) for part in value)
        array = value.numpy()
        return array.astype(np.float32, copy=False) if array.dtype.kind == "f" else array

    def image(self, pixels: Any) -> Any:
        return tuple(self._run("image", pixels))

    def text(self, ids: Any, mask: Any) -> Any:
        return self._run("text", ids, mask)[0]

    def detect(self, features: Any, text: Any, mask: Any, image_index: Any, text_index: Any) -> RawOutputs:
        return RawOutputs(*self._run("detect", *features, text, mask, image_index, text_index))

    def _run(self, stage: str, *values: Any) -> list:
        session = self.sessions[stage]
        binding = session.io_binding()
        for name, value in zip(self.inputs[stage], values, strict=True):
            binding.bind_ortvalue_input(name, value)
        for name in self.outputs[stage]:
            binding.bind_output(name, self.device)
        session.run_with_iobinding(binding)  # returns when the device is done
        return binding.get_outputs()

    def synchronize(self) -> None:
        """Nothing is pending: a run returns only when it is done."""

    def close(self) -> None:
        self.__dict__.clear()
