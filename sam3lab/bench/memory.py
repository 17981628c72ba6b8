"""How much memory this process holds, now and at most, on the host and on the GPU. MB are 10^6 bytes."""

import resource
import sys
from pathlib import Path
from typing import Any

from sam3lab.nvml import Gpu

_STATUS = Path("/proc/self/status")


def rss() -> float:
    """Resident memory now, MB. Linux; elsewhere the peak, which is all that the standard library tells."""
    return _status("VmRSS") or rss_peak()


def rss_peak() -> float:
    """The most resident memory since the process began, or since `reset_rss_peak`, MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def reset_rss_peak() -> bool:
    """Makes `rss_peak` count from now; False where the kernel does not allow it (see proc(5), clear_refs)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


class GpuMemory:
    """This process's share of the GPU through NVML, read between stages and never inside one.

    Allocators keep what they took, so that the greatest reading after each stage is close to the peak. torch's alone is
    told to give back, as at the end of loading, but says how much it held at its height, which is then added. Where the
    driver hides processes, the share is the growth of the whole device's use since this object was made, which is right
    while nothing else uses the GPU; `source` says which of the two it was. gpu: None where none is used.
    """

    def __init__(self, gpu: Gpu | None):
        self._gpu = gpu
        self._before = self._gpu.device_used() if self._gpu else 0.0
        self._height = 0.0  # of torch's allocator, as last seen
        self.source = "none" if self._gpu is None else "process"
        self.peak = 0.0

    def read(self) -> float | None:
        """MB now, None without a GPU; kept in `peak`, with what torch gave back since the last reading, if that is the
        greatest so far.
        """
        if self._gpu is None:
            return None
        used = self._gpu.process_used()
        if used is None:
            self.source = "device"
            used = self._gpu.device_used() - self._before
        self.peak = max(self.peak, used + self._given_back())
        return used

    def _given_back(self) -> float:
        """MB that torch's allocator gave back since the last reading from a height that it had not reached before."""
        cuda = _torch_cuda()
        before, self._height = self._height, cuda.max_memory_reserved() / 1e6 if cuda else 0.0
        return self._height - cuda.memory_reserved() / 1e6 if self._height > before else 0.0


def torch_peaks() -> dict[str, float]:
    """Peaks of torch's CUDA allocator in MB (allocated, reserved); empty unless torch is loaded and has used CUDA."""
    cuda = _torch_cuda()
    if cuda is None:
        return {}
    peaks = {"allocated": cuda.max_memory_allocated(), "reserved": cuda.max_memory_reserved()}
    return {f"torch_{name}_peak": value / 1e6 for name, value in peaks.items()}


def _torch_cuda() -> Any:
    """torch.cuda if torch is loaded and has used CUDA, else None."""
    torch = sys.modules.get("torch")
    used = torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized()
    return torch.cuda if used else None


def _status(field: str) -> float | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(field + ":")]
    return int(found[0]) * 1024 / 1e6 if found else None
