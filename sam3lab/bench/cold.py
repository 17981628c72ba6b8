"""A start with nothing made before: empty caches of every tool that keeps what it compiled, and weights read from disk.

What a process finds already made when it starts "warm" is made here in its own time: exported graphs, engines, compiled
kernels, the driver's. Installed software stays as warm as it is, bytecode and shared libraries among them.
"""

import ctypes
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from sam3lab.paths import cache_dir

# Variable to folder: where this package, TorchInductor, Triton, PyTorch's own kernels and extensions, and the CUDA
# driver keep what they made.
CACHES = {
    "SAM3LAB_CACHE": "sam3lab",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "PYTORCH_KERNEL_CACHE_PATH": "kernels",
    "TORCH_EXTENSIONS_DIR": "extensions",
    "CUDA_CACHE_PATH": "driver",
}
_PREFIX = "cold-"


@contextmanager
def empty_caches(work: Path) -> Iterator[None]:
    """Within, this process and its children have empty caches, in a folder of `work` that is gone afterwards.

    To be entered before torch or a runtime is imported. Digests of checkpoints are kept: to read a file of gigabytes in
    order to name what is made of it is no runtime's work. What a killed process left in `work` is removed.
    """
    for left in work.glob(f"{_PREFIX}*"):
        shutil.rmtree(left, ignore_errors=True)
    fingerprints = cache_dir("fingerprints")
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=work))
    before = {name: os.environ.get(name) for name in CACHES}
    for name, place in CACHES.items():
        (folder / place).mkdir()
        os.environ[name] = str(folder / place)
    shutil.copytree(fingerprints, cache_dir("fingerprints"), dirs_exist_ok=True)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        shutil.rmtree(folder, ignore_errors=True)


def last_export() -> float | None:
    """When the last of the graphs in the cache was complete, in seconds since the epoch; None where there are none."""
    return max((path.stat().st_mtime for path in cache_dir("graphs").glob("*/manifest.json")), default=None)


def forget_pages(files: Iterable[Path]) -> None:
    """Asks the kernel to drop what it holds of the files in memory, so that they are next read from disk.

    It does not where they lie in memory anyway (tmpfs), where another process maps them, or where it has no such call;
    `resident` tells.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())  # what is still to be written stays
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def resident(files: Iterable[Path]) -> float | None:
    """The share of the files' pages that the kernel holds in memory (mincore(2)), None where that is not told."""
    held = whole = 0
    try:
        mincore = ctypes.CDLL(None, use_errno=True).mincore
        for path in files:
            if not (size := path.stat().st_size):
                continue
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
                pages = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
                view = np.frombuffer(mapped, np.uint8)
                failed = mincore(
                    ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(size), pages.ctypes.data_as(ctypes.c_char_p)
                )
                del view  # the map cannot be closed under it
                if failed:
                    return None
                held, whole = held + int((pages & 1).sum()), whole + len(pages)
    except (OSError, AttributeError):
        return None
    return held / whole if whole else None
