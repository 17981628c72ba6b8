"""The GPU as NVIDIA's management library sees it; None where there is no driver, library or GPU."""

import os
import time
from typing import Any

from sam3lab.errors import UserError

# Of the reasons why clocks are lower than they could be (nvmlClocksEventReasons), those that are no one's choice.
LIMITS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
# Less than any process that computes holds: a CUDA context alone takes more.
_HIDDEN_MB = 200.0


class Gpu:
    """The GPU that CUDA would call device 0 in this process. MB are 10^6 bytes. What a driver does not tell is None."""

    def __init__(self, nvml: Any, handle: Any):
        self._nvml, self._handle = nvml, handle
        self._absent: set[tuple] = set()

    def device_used(self) -> float:
        """Memory in use on the whole device by every process, MB, without what the driver reserves for itself."""
        memory = self._ask("nvmlDeviceGetMemoryInfo", self._nvml.nvmlMemory_v2)
        # drivers before 510 have one kind of answer, with the reserve counted as used
        return (memory or self._nvml.nvmlDeviceGetMemoryInfo(self._handle)).used / 1e6

    def process_used(self) -> float | None:
        """Memory in use by this process, MB; None where the driver hides it, as it does inside containers."""
        return self.processes().get(os.getpid()) or None

    def energy(self) -> float | None:
        """Joules that the board has taken since the driver was loaded; counted from Volta on, in steps of some 0.1 s."""
        millijoules = self._ask("nvmlDeviceGetTotalEnergyConsumption")
        return None if millijoules is None else millijoules / 1000

    def state(self) -> dict[str, float | None]:
        """At this moment: clock_sm and clock_memory (MHz), temperature (°C), power (W, of the last second on recent
        GPUs), and limits, the bits of nvmlClocksEventReasons.
        """
        nvml = self._nvml
        power = self._ask("nvmlDeviceGetPowerUsage")
        return {
            "clock_sm": self._ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
            "clock_memory": self._ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM),
            "temperature": self._ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
            "power": None if power is None else power / 1000,
            "limits": self._ask("nvmlDeviceGetCurrentClocksThrottleReasons"),
        }

    def processes(self) -> dict[int, float]:
        """MB (0 where it is not told) by process, of those that compute; empty also where the driver hides them."""
        found: dict[int, float] = {}
        for kind in ("Compute", "MPSCompute"):
            for process in self._ask(f"nvmlDeviceGet{kind}RunningProcesses") or ():
                found[process.pid] = (process.usedGpuMemory or 0) / 1e6
        return found

    def drawn(self) -> float:
        """Memory of the processes that draw on the screen, MB; those of `processes` are not among them."""
        drawing = self._ask("nvmlDeviceGetGraphicsRunningProcesses") or ()
        computing = self.processes()
        return sum((each.usedGpuMemory or 0) / 1e6 for each in drawing if each.pid not in computing)

    def facts(self) -> dict[str, Any]:
        """Name, driver, memory, limits and present clocks; what a driver does not tell is None."""
        nvml, ask = self._nvml, self._ask
        capability = ask("nvmlDeviceGetCudaComputeCapability")
        power = ask("nvmlDeviceGetEnforcedPowerLimit")
        cuda = self._of_system("nvmlSystemGetCudaDriverVersion_v2")
        ecc, mig = ask("nvmlDeviceGetEccMode"), ask("nvmlDeviceGetMigMode")
        return {
            "gpu": _text(ask("nvmlDeviceGetName")),
            "gpu_capability": capability and ".".join(map(str, capability)),
            "gpu_memory_gb": round(nvml.nvmlDeviceGetMemoryInfo(self._handle).total / 1e9, 1),
            "gpu_driver": _text(self._of_system("nvmlSystemGetDriverVersion")),
            "gpu_cuda_driver": cuda and f"{cuda // 1000}.{cuda % 1000 // 10}",
            "gpu_power_limit_w": power and power / 1000,
            "gpu_ecc": ecc and bool(ecc[0]),
            "gpu_mig": mig and bool(mig[0]),
            "gpu_clock_max_mhz": ask("nvmlDeviceGetMaxClockInfo", nvml.NVML_CLOCK_SM),
            "gpu_clock_memory_max_mhz": ask("nvmlDeviceGetMaxClockInfo", nvml.NVML_CLOCK_MEM),
            "gpu_clock_mhz": ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
            "gpu_temperature_c": ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
        }

    def _ask(self, name: str, *arguments: Any) -> Any:
        """What a function says of this device; None where it fails. What the driver does not offer is asked for once."""
        if (name, arguments) in self._absent:
            return None
        nvml = self._nvml
        try:
            return getattr(nvml, name)(self._handle, *arguments)
        except nvml.NVMLError as error:
            if error.value in (nvml.NVML_ERROR_NOT_SUPPORTED, nvml.NVML_ERROR_FUNCTION_NOT_FOUND):
                self._absent.add((name, arguments))
            return None

    def _of_system(self, name: str) -> Any:
        try:
            return getattr(self._nvml, name)()
        except self._nvml.NVMLError:
            return None


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


def refuse_others(patience: float = 5.0) -> None:
    """Raises UserError where other processes compute on the GPU, as long as they do so for `patience` seconds: a
    process that has just ended may leave its memory behind for a moment. Nothing where there is no GPU.

    To be called before this process or a child of it computes there. Its own parent is not counted as another. Where the
    driver hides processes, as it does inside containers, memory in use that is no one's is taken as a sign of them.
    """
    graphics = gpu()
    if graphics is None:
        return
    deadline = time.monotonic() + patience
    while (found := users(graphics)) and time.monotonic() < deadline:
        time.sleep(0.1)
    if found:
        raise UserError(
            f"the GPU is in use by {found}, and what is measured beside others means nothing: "
            "end what uses it, or choose another GPU with CUDA_VISIBLE_DEVICES"
        )


def users(graphics: Gpu) -> str:
    """Who but this process and its parent computes on the GPU, in words; empty for no one."""
    own = (os.getpid(), os.getppid())
    known = graphics.processes()
    others = {pid: used for pid, used in known.items() if pid not in own}
    if others:
        listed = (f"{pid} ({used:.0f} MB)" if used else str(pid) for pid, used in sorted(others.items()))
        return f"process{'es' if len(others) > 1 else ''} {', '.join(listed)}"
    unknown = graphics.device_used() - sum(known.values()) - graphics.drawn()
    if unknown > _HIDDEN_MB:
        return f"processes that the driver does not show, which hold {unknown:.0f} MB (unless it is this one itself)"
    return ""


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
