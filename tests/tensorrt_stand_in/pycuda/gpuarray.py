import numpy as np


class GPUArray:
    def __init__(self, array):
        self._array = array
        self.shape, self.gpudata = array.shape, array.ctypes.data

    def get(self):
        return self._array


def to_gpu(array):
    return GPUArray(array.copy())


def empty(shape, dtype):
    return GPUArray(np.empty(shape, dtype))
