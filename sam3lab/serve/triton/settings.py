"""What a model repository is made for."""

import math
from dataclasses import dataclass
from pathlib import Path

from sam3lab.errors import UserError

BACKENDS = ("onnxruntime", "tensorrt", "python")  # Triton's own names
RUNTIMES = ("pytorch", "onnxruntime", "openvino")  # what the models of the Python back end may compute with

# A CPU that computes in half precision gains nothing here. The Python back end hands float32 from stage to stage.
PRECISIONS = {
    ("onnxruntime", "cpu"): ("fp32",),
    ("onnxruntime", "cuda"): ("fp32", "tf32", "fp16"),
    ("tensorrt", "cuda"): ("fp32", "tf32", "fp16", "bf16"),
    ("python", "cpu"): ("fp32",),
    ("python", "cuda"): ("fp32", "tf32"),
}


@dataclass(frozen=True)
class Settings:
    """Of a model repository. Raises UserError, naming the setting, for what does not go together.

    checkpoint: directory in facebook/sam3's format; name: what `resolve` finds it by. resolution: image side in pixels.
    backend: one of BACKENDS. runtime: one of RUNTIMES, for the Python back end alone. max_batch: images that a model
    computes at once. max_prompts: prompts that one request may have. instances: of each model, on each device. queue:
    requests that wait for a model before further ones are refused, 0 for any number. queue_delay: seconds that a request may wait for
    others to be batched with. queue_timeout: seconds after which a waiting request is refused. threads: of the CPU, for
    one instance; 0 for every core.
    """

    checkpoint: Path
    name: str
    resolution: int
    backend: str = "onnxruntime"
    precision: str = "fp32"
    device: str = "cpu"
    runtime: str = "pytorch"
    max_batch: int = 8
    max_prompts: int = 16
    instances: int = 1
    queue: int = 64
    queue_delay: float = 0.002
    queue_timeout: float = 30.0
    threads: int = 0

    def __post_init__(self):
        if self.backend not in BACKENDS:
            raise UserError(f"Triton has no back end {self.backend!r} that this is made for: {', '.join(BACKENDS)}")
        if (self.backend, self.device) not in PRECISIONS:
            devices = [device for backend, device in PRECISIONS if backend == self.backend]
            raise UserError(f"the back end {self.backend} runs on {' or '.join(devices)}, not on {self.device!r}")
        precisions = PRECISIONS[self.backend, self.device]
        if self.precision not in precisions:
            raise UserError(
                f"the back end {self.backend} on {self.device} is made for {', '.join(precisions)}, not for "
                f"{self.precision!r}"
            )
        if self.backend == "python" and self.runtime not in RUNTIMES:
            raise UserError(f"the Python back end has no runtime {self.runtime!r}: {', '.join(RUNTIMES)}")
        if (self.backend, self.runtime, self.device) == ("python", "openvino", "cuda"):
            raise UserError("the runtime openvino runs on the CPU: give --device cpu, or another runtime")
        for name, least in {"max_batch": 1, "max_prompts": 1, "instances": 1, "queue": 0, "threads": 0}.items():
            if getattr(self, name) < least:
                raise UserError(f"{name.replace('_', '-')} is {getattr(self, name)}: give at least {least}")
        if not 0 <= self.queue_delay <= self.queue_timeout < math.inf or self.queue_timeout == 0:
            raise UserError(
                f"a request may wait {self.queue_delay} s for others and {self.queue_timeout} s in all: give a "
                "queue-timeout above 0 and a queue-delay that is not longer"
            )
