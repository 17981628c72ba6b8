"""What an exception out of a runtime means for the engine that raised it."""

import re

MEMORY = "memory"  # none was left: smaller batches may do, and others may give some back
DEVICE = "device"  # the device or its context is lost, and with it the process that holds it
ERROR = "error"  # anything else: perhaps the request's own doing
# for clients, after an engine's name; what a runtime says is for its operator
PHRASES = {MEMORY: "ran out of memory", DEVICE: "lost its device", ERROR: "failed"}

# As torch, ONNX Runtime (its CUDA arena and CUDA itself), OpenVINO, TensorRT and PyCUDA put it.
_MEMORY = re.compile(
    r"out of memory|out_of_memory|failed to allocate|can't allocate memory|cannot allocate memory|not enough memory"
    r"|bad_alloc|bfcarena|alloc_failed|outofmemory",
    re.IGNORECASE,
)
# CUDA's errors are sticky: after most of them every later call of the process fails too.
_DEVICE = re.compile(
    r"\bcuda (runtime )?(error|failure)|cublas_status|cudnn_status|\bcu[A-Z]\w+ (gave|failed|returned)|device[ -]side assert"
    r"|illegal memory access|unspecified launch failure|no cuda-capable device|gpu is lost|device (was |is )?lost"
    r"|device removed|uncorrectable ecc|context is destroyed",
    re.IGNORECASE,
)


def classify(error: BaseException) -> str:
    """MEMORY, DEVICE or ERROR, by the exception's class and what it says."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or _MEMORY.search(text):
        return MEMORY
    if type(error).__name__ == "AcceleratorError" or _DEVICE.search(text):
        return DEVICE
    return ERROR


def describe(error: BaseException) -> str:
    """The exception in one line of at most 300 characters."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300].removesuffix(": ")
