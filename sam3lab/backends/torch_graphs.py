"""A stage under PyTorch as CUDA graphs."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sam3lab.backends.plans import Plan, Plans


def graphs(function: Callable[..., Any], stream: Any) -> Plans:
    """Calls of `function` on CUDA tensors, captured once for each set of shapes and addresses.

    stream: the torch stream to capture on. Graphs that may run at the same time need different ones: cuBLAS has one
    workspace a stream, and kernels that share it may wait for each other for ever.
    """
    warm: set[tuple] = set()

    def make(tensors: Sequence[Any], first: bool) -> Plan:
        # gathered features have other strides than those of the image stage, and a function is compiled for each
        layout = tuple((tensor.shape, tensor.stride()) for tensor in tensors)
        plan = _Graph(function, tensors, stream, warm_up=first or layout not in warm)
        warm.add(layout)
        return plan

    return Plans(
        make=make,
        copy=lambda tensor: tensor.clone(),
        address=lambda tensor: tensor.data_ptr(),
    )


class _Graph(Plan):
    """One captured graph with the tensors that it reads and writes."""

    def __init__(self, function: Callable[..., Any], inputs: Sequence[Any], stream: Any, warm_up: bool):
        import torch

        super().__init__(tuple(tensor.data_ptr() for tensor in inputs))
        # other tensors on the same memory, which keep it, whatever becomes of the caller's
        self._inputs = [tensor.detach() for tensor in inputs]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2 if warm_up else 0):  # compiles, and lets libraries choose their kernels
                function(*self._inputs)
        stream.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=stream):
            outputs = function(*self._inputs)
        self._outputs = outputs if isinstance(outputs, tuple) else (outputs,)

    def enqueue(self) -> Iterable[Any]:
        self._graph.replay()
        return (output.detach() for output in self._outputs)

    def fill(self, values: Sequence[Any]) -> None:
        for own, tensor in zip(self._inputs, values, strict=True):
            own.copy_(tensor)

    def move(self, value: Any) -> None:
        import torch

        own = value.clone()
        own.record_stream(torch.cuda.default_stream())  # where it is read, on whatever stream it was made
        value.data = own
