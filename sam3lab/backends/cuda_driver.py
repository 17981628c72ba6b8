"""The few calls of the CUDA driver that a runtime's own Python API lacks, through ctypes. Sizes are in bytes."""

import ctypes
from functools import cache
from typing import Any


@cache
def _library() -> Any:
    return ctypes.CDLL("libcuda.so.1")


def call(function: str, *arguments: Any) -> None:
    """Call a function of the driver. Raises OSError where there is no driver, RuntimeError, with its reason, where it
    refuses."""
    code = getattr(_library(), function)(*arguments)
    if code:
        text = ctypes.c_char_p()
        _library().cuGetErrorString(code, ctypes.byref(text))
        raise RuntimeError(f"{function} gave CUDA error {code}: {(text.value or b'unknown').decode()}")


def use_primary_context() -> None:
    """Make device 0's primary context, which the CUDA runtime and PyTorch use, this thread's where it has none yet."""
    call("cuInit", 0)
    context = ctypes.c_void_p()
    call("cuCtxGetCurrent", ctypes.byref(context))
    if not context:
        call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
        call("cuCtxSetCurrent", context)


class Stream:
    """A stream that waits for the default stream and is waited for by it, so that plain copies are in order with it."""

    def __init__(self):
        use_primary_context()
        self._handle = ctypes.c_void_p()
        call("cuStreamCreate", ctypes.byref(self._handle), 0)

    @property
    def address(self) -> int:
        return self._handle.value

    def copy(self, target: int, source: int, size: int) -> None:
        """Enqueue a copy from one address on the device to another."""
        call("cuMemcpyDtoDAsync_v2", *map(ctypes.c_void_p, (target, source)), ctypes.c_size_t(size), self._handle)

    def synchronize(self) -> None:
        call("cuStreamSynchronize", self._handle)

    def close(self) -> None:
        call("cuStreamDestroy_v2", self._handle)
