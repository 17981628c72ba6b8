"""Memory and a stream on the first GPU through PyCUDA, in the context that PyTorch and the CUDA runtime use too."""

import atexit
import ctypes
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from sam3lab.backends.cuda_driver import call
from sam3lab.backends.cuda_graph import CudaGraph


@dataclass(eq=False)
class DeviceArray:
    """A contiguous array in device memory, which goes back to its pool with the last reference to `block`."""

    block: Any
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def address(self) -> int:
        return int(self.block)

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def alias(self) -> "DeviceArray":
        """Another array in the same memory."""
        return DeviceArray(self.block, self.shape, self.dtype)

    def part(self, index: tuple[int, ...]) -> "DeviceArray":
        """The part at these places of the leading axes, in the same memory."""
        rest = self.shape[len(index) :]
        place = int(np.ravel_multi_index(index, self.shape[: len(index)]))
        return DeviceArray(_Inside(self.block, place * prod(rest) * self.dtype.itemsize), rest, self.dtype)


@dataclass(frozen=True)
class _Inside:
    """A place inside a block, which it keeps; the offset in bytes."""

    block: Any
    offset: int

    def __int__(self) -> int:
        return int(self.block) + self.offset


class Device:
    """Device 0's primary context made current in this thread, one stream, and pools of device and page-locked memory.

    Everything is enqueued on the one stream, so that memory may go back to the pool while the device still works with
    it: whoever gets it next is enqueued later. The stream waits for the default stream, which PyTorch uses, and is
    waited for by it. Use a device in the thread that made it.
    """

    def __init__(self):
        import pycuda.driver as cuda
        from pycuda.tools import DeviceMemoryPool, PageLockedMemoryPool

        cuda.init()
        self._cuda = cuda
        self._context = cuda.Device(0).retain_primary_context()
        self._context.push()
        atexit.register(self._leave)  # PyCUDA aborts a process that ends with a context on its stack
        self._stream = cuda.Stream()
        self._memory, self._host = DeviceMemoryPool(), PageLockedMemoryPool()
        self._staged: deque = deque()  # (event, host memory) of copies to the device that may not have ended

    @property
    def stream(self) -> int:
        """The stream's address."""
        return int(self._stream.handle)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        """An uninitialised array from the pool, which rounds sizes up by a sixteenth at most."""
        shape, dtype = tuple(shape), np.dtype(dtype)
        return DeviceArray(self._memory.allocate(prod(shape) * dtype.itemsize), shape, dtype)

    def upload(self, array: np.ndarray) -> DeviceArray:
        """A host array's copy; enqueued from page-locked memory, so that the array is free at once."""
        while self._staged and self._staged[0][0].query():
            self._staged.popleft()
        target = self.empty(array.shape, array.dtype)
        staging = self._host.allocate((target.nbytes,), np.uint8)
        np.copyto(staging.view(array.dtype).reshape(array.shape), array)
        self._cuda.memcpy_htod_async(target.address, staging, self._stream)
        event = self._cuda.Event(self._cuda.event_flags.DISABLE_TIMING)
        event.record(self._stream)
        self._staged.append((event, staging))
        return target

    def download(self, array: DeviceArray, dtype: Any = None) -> np.ndarray:
        """A host copy, in another dtype if one is given; waits for all that is enqueued."""
        staging = self._host.allocate((array.nbytes,), np.uint8)
        self._cuda.memcpy_dtoh_async(staging, array.address, self._stream)
        self._stream.synchronize()
        return staging.view(array.dtype).reshape(array.shape).astype(dtype or array.dtype)

    def write(self, target: DeviceArray, source: DeviceArray) -> None:
        """Enqueue a copy into an array of the same shape and dtype."""
        self._cuda.memcpy_dtod_async(target.address, source.address, target.nbytes, self._stream)

    def copy(self, source: DeviceArray) -> DeviceArray:
        """An array of the same content with memory of its own."""
        target = self.empty(source.shape, source.dtype)
        self.write(target, source)
        return target

    def capture(self, enqueue: Callable[[], None]) -> CudaGraph:
        """What a function enqueues on the stream, as a graph."""
        return CudaGraph(self.stream, enqueue)

    def give_back(self) -> None:
        """Free what the pools hold for later; waits for all that is enqueued."""
        self._stream.synchronize()
        self._staged.clear()
        self._host.free_held()
        self._memory.free_held()

    def synchronize(self) -> None:
        """Wait for all that is enqueued."""
        self._stream.synchronize()

    def close(self) -> None:
        """Free the pools and let go of the context, which lives on where PyTorch uses it. Arrays must not be used again."""
        self._stream.synchronize()
        self._staged.clear()
        self._host.stop_holding()
        self._memory.stop_holding()
        del self._stream, self._host, self._memory
        atexit.unregister(self._leave)
        self._leave()
        self._context.detach()
        with suppress(RuntimeError):  # PyCUDA makes the context current to release it, and leaves it so
            call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def _leave(self) -> None:
        self._context.pop()
