"""A CUDA graph of what a function enqueues on a stream, through the driver: PyCUDA has no graphs of its own."""

import ctypes
from collections.abc import Callable
from contextlib import suppress

from sam3lab.backends.cuda_driver import call

_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: what other threads call does not break the capture


class CudaGraph:
    """Captured once, then launched as a whole. A CUDA context must be current in this thread.

    stream: the address of the stream, which must not be the default one. enqueue: what it enqueues on the stream is
    recorded, not run; it must have run once before, so that nothing is set up within. Raises RuntimeError where the
    driver refuses, with its reason.
    """

    def __init__(self, stream: int, enqueue: Callable[[], None]):
        self._stream, self._executable, graph = ctypes.c_void_p(stream), ctypes.c_void_p(), ctypes.c_void_p()
        call("cuStreamBeginCapture_v2", self._stream, _THREAD_LOCAL)
        try:
            enqueue()
        except BaseException:
            with suppress(RuntimeError):  # the capture is broken, and only this ends it
                call("cuStreamEndCapture", self._stream, ctypes.byref(graph))
                call("cuGraphDestroy", graph)
            raise
        call("cuStreamEndCapture", self._stream, ctypes.byref(graph))
        try:
            call("cuGraphInstantiateWithFlags", ctypes.byref(self._executable), graph, ctypes.c_ulonglong(0))
        finally:
            call("cuGraphDestroy", graph)

    def launch(self) -> None:
        """Enqueue all of it on the stream."""
        call("cuGraphLaunch", self._executable, self._stream)

    def close(self) -> None:
        """Give back its memory; it must not be running."""
        call("cuGraphExecDestroy", self._executable)
