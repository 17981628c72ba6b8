"""How many CPU threads this process can use."""

import math
import os
from pathlib import Path


def available_cores() -> int:
    """How many CPU threads this process can run at once: its affinity, less where a control group's quota says less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no control group of version 2, or no limit ("max")
        pass
    return cores
