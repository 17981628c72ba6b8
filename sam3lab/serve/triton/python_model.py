"""The model of Triton's Python back end: one stage, in a process of its own. Triton imports it through a model.py.

Nothing here asks for more than the back end's runtime does: torch and safetensors, or ONNX Runtime or OpenVINO and onnx.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sam3lab.serve.triton import stages

SHARED = "sam3"  # the ensemble's directory beside the model's; its checkpoint and graphs serve all stages


class TritonPythonModel:
    """Triton's interface. What it is to run is in the configuration's parameters, see config.py."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the runtime. Raises RuntimeError with the remedy where it cannot run here, which fails the model's load."""
        import triton_python_backend_utils as pb_utils

        from sam3lab import backends
        from sam3lab.model.config import read_config

        self._triton = pb_utils
        config = json.loads(args["model_config"])
        settings = {name: value["string_value"] for name, value in config["parameters"].items()}
        shared = Path(args["model_repository"]).parent / SHARED
        self._inputs = [tensor["name"] for tensor in config["input"]]
        self._outputs = [tensor["name"] for tensor in config["output"]]
        self._compute: Callable = getattr(stages, settings["stage"])
        self._max_prompts = int(settings["max_prompts"])
        self._vocabulary = read_config(shared / "checkpoint").vocabulary

        chosen = backends.get(settings["runtime"])
        if reason := chosen.unavailable(settings["device"], settings["precision"]):
            raise RuntimeError(f"the runtime {settings['runtime']} cannot run {settings['precision']} here: {reason}")
        artifacts = backends.Artifacts(
            checkpoint=shared / "checkpoint",
            resolution=int(settings["resolution"]),
            precision=settings["precision"],
            device=settings["device"],
            threads=int(settings["threads"]),
            graphs=shared / "graphs" if (shared / "graphs").is_dir() else None,
        )
        if settings["device"] == "cuda":
            _use_gpu(settings["runtime"], int(args["model_instance_device_id"]))
        self._backend = chosen()
        self._backend.load(chosen.prepare(artifacts))
        if isinstance(modules := getattr(self._backend, "stages", None), dict):
            self._backend.stages = {settings["stage"]: modules[settings["stage"]]}  # the others' weights are let go

    def execute(self, requests: list[Any]) -> list[Any]:
        """A response for each request; they are computed together. One that is wrong or was cancelled fails alone."""
        responses: list[Any] = [None] * len(requests)
        values = {}
        for number, request in enumerate(requests):
            if request.is_cancelled():
                responses[number] = self._failure("the request was cancelled", "CANCELLED")
                continue
            given = [self._triton.get_input_tensor_by_name(request, name).as_numpy() for name in self._inputs]
            if wrong := self._wrong(dict(zip(self._inputs, given, strict=True))):
                responses[number] = self._failure(wrong, "INVALID_ARG")
            else:
                values[number] = given
        for number, result in zip(values, self._results(list(values.values())), strict=True):
            responses[number] = result if not isinstance(result, list) else self._answer(requests[number], result)
        return responses

    def finalize(self) -> None:
        """Give back what the runtime holds."""
        if "_backend" in self.__dict__:
            self._backend.close()

    def _results(self, values: Sequence[Sequence[np.ndarray]]) -> list[Any]:
        """For each request its outputs, or the response that says why there are none."""
        if not values:
            return []
        try:
            return self._compute(self._backend, values)
        except Exception as error:  # whatever the runtime raises, the other models and requests must live on
            self._triton.Logger.log_error(f"{self._compute.__name__} of {len(values)} requests: {error!r}")
            if len(values) == 1:
                return [self._failure(f"{type(error).__name__}: {error}", "INTERNAL")]
        return [result for each in values for result in self._results([each])]  # what was too much at once, one by one

    def _wrong(self, given: dict[str, np.ndarray]) -> str | None:
        """Why the request cannot be computed, though its types and shapes are those of the configuration."""
        prompts = given["mask"].shape[1] if "mask" in given else 1
        if not 1 <= prompts <= self._max_prompts:
            return (
                f"{prompts} prompts in one request, and the model takes 1 to {self._max_prompts}: send several requests"
            )
        for name in ("text_features", "ids"):
            if name in given and given[name].shape[1] != prompts:
                return (
                    f"{name} has {given[name].shape[1]} prompts and mask has {prompts}: give one mask for each prompt"
                )
        if "ids" in given and (given["ids"].min() < 0 or given["ids"].max() >= self._vocabulary):
            return f"ids must be tokens of the checkpoint, from 0 to {self._vocabulary - 1}"
        return None

    def _answer(self, request: Any, values: list[np.ndarray]) -> Any:
        wanted = request.requested_output_names()
        return self._triton.InferenceResponse(
            [
                self._triton.Tensor(name, np.ascontiguousarray(value))
                for name, value in zip(self._outputs, values, strict=True)
                if name in wanted
            ]
        )

    def _failure(self, message: str, code: str) -> Any:
        kind = getattr(self._triton.TritonError, code)
        return self._triton.InferenceResponse([], error=self._triton.TritonError(message, kind))


def _use_gpu(runtime: str, number: int) -> None:
    if runtime == "pytorch":
        import torch

        torch.cuda.set_device(number)
    elif number:
        raise RuntimeError(f"the runtime {runtime} uses GPU 0 alone: give the models instances on it, with gpus: [0]")
