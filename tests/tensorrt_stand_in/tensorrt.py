"""What data/deployment/run_tensorrt.py takes of TensorRT; its engines are ONNX graphs, its device the host's memory.

Their tensors have no order that the script could rely on, as TensorRT documents none.
"""

import ctypes
import weakref
from enum import Enum

import numpy as np
import onnxruntime

TensorIOMode = Enum("TensorIOMode", ["INPUT", "OUTPUT"])
nptype = np.dtype
there = weakref.WeakSet()  # what must go before the device's context does


class Logger:
    WARNING = 2

    def __init__(self, severity):
        pass


class _Made:
    def __new__(cls, *_):
        made = super().__new__(cls)
        there.add(made)
        return made


class Runtime(_Made):
    def __init__(self, logger):
        pass

    def deserialize_cuda_engine(self, data):
        return Engine(data)


class Engine(_Made):
    def __init__(self, data):
        self.session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        self.values = {value.name: value for value in (*self.session.get_outputs(), *self.session.get_inputs())}
        self.num_io_tensors = len(self.values)

    def create_execution_context(self):
        return Context(self)

    def get_tensor_name(self, index):
        return sorted(self.values)[-1 - index]

    def get_tensor_mode(self, name):
        inputs = {value.name for value in self.session.get_inputs()}
        return TensorIOMode.INPUT if name in inputs else TensorIOMode.OUTPUT

    def get_tensor_shape(self, name):
        return tuple(size if isinstance(size, int) else -1 for size in self.values[name].shape)

    def get_tensor_dtype(self, name):
        kind = self.values[name].type.removeprefix("tensor(").removesuffix(")")
        return {"float": "float32"}.get(kind, kind)


class Context(_Made):
    def __init__(self, engine):
        self._engine, self._shapes, self._addresses = engine, {}, {}

    def set_input_shape(self, name, shape):
        wanted = self._engine.get_tensor_shape(name)
        self._shapes[name] = tuple(shape)
        return len(shape) == len(wanted) and all(b in (-1, a) for a, b in zip(shape, wanted, strict=True))

    def get_tensor_shape(self, name):
        values = self._engine.values
        sizes = {
            axis: size
            for given, shape in self._shapes.items()
            for axis, size in zip(values[given].shape, shape, strict=True)
        }
        return tuple(sizes.get(axis, axis) for axis in values[name].shape)

    def set_tensor_address(self, name, memory):
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle):
        session = self._engine.session
        names = [value.name for value in session.get_outputs()]
        results = session.run(names, {name: self._at(name) for name in self._shapes})
        for name, result in zip(names, results, strict=True):
            self._at(name)[...] = result
        return True

    def _at(self, name):
        dtype = np.dtype(self._engine.get_tensor_dtype(name))
        shape = self.get_tensor_shape(name)
        memory = (ctypes.c_byte * (int(np.prod(shape)) * dtype.itemsize)).from_address(self._addresses[name])
        return np.frombuffer(memory, dtype).reshape(shape)
