"""The GPU as NVIDIA's management library sees it; None where there is no driver, library or GPU."""

import os
from typing import Any


class Gpu:
    """The GPU that CUDA would call device 0 in this process. MB are 10^6 bytes."""

    def __init__(self, nvml: Any, handle: Any):
        self._nvml, self._handle = nvml, handle

    def device_used(self) -> float:
        """Memory in use on the whole device by every process, MB."""
        return self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used / 1e6

    def process_used(self) -> float | None:
        """Memory in use by this process, MB; None where the driver hides it, as it does inside containers."""
        for process in self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle):
            if process.pid == os.getpid() and process.usedGpuMemory:
                return process.usedGpuMemory / 1e6
        return None

    def facts(self) -> dict[str, Any]:
        """Name, driver, memory, limits and present clocks; what a driver does not tell is None."""
        nvml, handle = self._nvml, self._handle

        def ask(function, *arguments):
            try:
                value = function(*arguments)
            except nvml.NVMLError:
                return None
            return value.decode() if isinstance(value, bytes) else value

        capability = ask(nvml.nvmlDeviceGetCudaComputeCapability, handle)
        power = ask(nvml.nvmlDeviceGetEnforcedPowerLimit, handle)
        cuda = ask(nvml.nvmlSystemGetCudaDriverVersion_v2)
        return {
            "gpu": ask(nvml.nvmlDeviceGetName, handle),
            "gpu_capability": capability and ".".join(map(str, capability)),
            "gpu_memory_gb": round(nvml.nvmlDeviceGetMemoryInfo(handle).total / 1e9, 1),
            "gpu_driver": ask(nvml.nvmlSystemGetDriverVersion),
            "gpu_cuda_driver": cuda and f"{cuda // 1000}.{cuda % 1000 // 10}",
            "gpu_power_limit_w": power and power / 1000,
            "gpu_clock_max_mhz": ask(nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_SM),
            "gpu_clock_mhz": ask(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM),
            "gpu_temperature_c": ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
        }


def gpu() -> Gpu | None:
    """The first GPU visible to CUDA (CUDA_VISIBLE_DEVICES is followed), or None."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    first = "0" if visible is None else visible.split(",")[0].strip()
    if first in ("", "-1"):
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
        by_index = first.isdigit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(int(first)) if by_index else pynvml.nvmlDeviceGetHandleByUUID(first)
        return Gpu(pynvml, handle)
    except ImportError:
        return None
    except pynvml.NVMLError:
        return None
