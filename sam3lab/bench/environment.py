"""What a measurement was made on: recorded with every run, and compared before rows are put together."""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from sam3lab.cores import available_cores
from sam3lab.nvml import gpu
from sam3lab.paths import ROOT

PACKAGES = (
    "numpy",
    "torch",
    "transformers",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "pycuda",
    "pillow",
    "pycocotools",
    "safetensors",
    "tokenizers",
    "triton",
    "nvidia-cublas",
    "nvidia-cudnn-cu13",
    "sam3",
)
_MODULES = {"onnxruntime": "onnxruntime", "onnxruntime-gpu": "onnxruntime"}
_ISA = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8", "asimd")

# Recorded, but free to differ between rows that are put together: they change by themselves, or with work that cannot
# change a measurement ("code" covers the sources that can).
VOLATILE = (
    "collected",
    "git_commit",
    "git_dirty",
    "cpu_mhz",
    "load_average",
    "gpu_clock_mhz",
    "gpu_temperature_c",
)

_CODE = (
    "model/*.py",
    "export/*.py",
    "backends/*.py",
    "images.py",
    "nvml.py",
    "postprocess.py",
    *(f"bench/{name}.py" for name in ("clock", "cold", "gpu_monitor", "host_speed", "inputs", "memory")),
    *(f"bench/{name}.py" for name in ("stages", "worker")),
    *(f"bench/{name}.py" for name in ("accuracy", "average_precision", "coco", "predict", "scene_inputs")),
)


def collect(device: str | None = None) -> dict[str, Any]:
    """Flat facts: CPU, cores, memory, GPU with driver and clocks, OS, Python, package versions, code, git commit.

    device "cpu" leaves the GPU out; otherwise the one that CUDA would use is described where there is one.
    """
    import datetime

    graphics = None if device == "cpu" else gpu()
    return {
        "collected": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **cpu(),
        "threads": available_cores(),
        "ram_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9),
        "os": _os(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        **(graphics.facts() if graphics else {"gpu": None}),
        **{f"version_{name}": version(name) for name in PACKAGES},
        "code": code(),
        **_git(),
    }


def fingerprint(facts: dict[str, Any]) -> str:
    """12 hex digits of the SHA-256 of what must be equal for rows to be put together."""
    stable = {key: value for key, value in facts.items() if key not in VOLATILE}
    return hashlib.sha256(json.dumps(stable, sort_keys=True).encode()).hexdigest()[:12]


def differences(one: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The facts, of those that must be equal, that are not: key to both values."""
    keys = sorted((set(one) | set(other)) - set(VOLATILE))
    return {key: (one.get(key), other.get(key)) for key in keys if one.get(key) != other.get(key)}


def commit(facts: dict[str, Any]) -> str | None:
    """The commit of this project that the facts name, and whether its files were changed since; None without one."""
    known = facts.get("git_commit")
    return f"{known}, with uncommitted changes" if known and facts.get("git_dirty") else known


def version(package: str) -> str | None:
    """The installed version of a distribution, found without importing it; None if absent, or if its module is not the one
    that would be imported: onnxruntime and onnxruntime-gpu, say, have a module of one name.
    """
    try:
        found = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return None
    module = _MODULES.get(package)
    spec = importlib.util.find_spec(module) if module else None
    if spec and spec.origin and not Path(found.locate_file(f"{module}/__init__.py")).samefile(spec.origin):
        return None
    return found.version


def cpu() -> dict[str, Any]:
    """The processor: model, instruction sets that matter here, present MHz, governor, cores, virtual or not, load."""
    fields = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines():
            name, _, value = line.partition(":")
            fields[name.strip()] = value.strip()
    except OSError:
        pass
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    return {
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "cpu_isa": " ".join(flag for flag in _ISA if flag in flags),
        "cpu_mhz": fields.get("cpu MHz"),
        "cpu_governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "cores": os.cpu_count(),
        "virtual": "hypervisor" in flags,
        "load_average": round(os.getloadavg()[0], 2),
    }


def _os() -> str:
    if sys.platform != "linux":
        return platform.platform()
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return "Linux"


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def code() -> str:
    """12 hex digits over the sources that decide what is computed and how it is timed."""
    package = Path(__file__).resolve().parents[1]
    whole = hashlib.sha256()
    for pattern in _CODE:
        for path in sorted(package.glob(pattern)):
            whole.update(f"{path.relative_to(package)}\0".encode())
            whole.update(path.read_bytes())
    return whole.hexdigest()[:12]


def _git() -> dict[str, Any]:
    def ask(*command: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(ROOT), *command], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    changed = ask("status", "--porcelain", "--untracked-files=no")
    return {"git_commit": ask("rev-parse", "HEAD"), "git_dirty": None if changed is None else bool(changed)}
