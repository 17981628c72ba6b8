"""Folders and files that are there whole or not at all, whoever is killed meanwhile and however full the disk is."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

PREFIX = ".unfinished-"


def folder(target: Path, make: Callable[[Path], Any]) -> Path:
    """`target`, which `make` fills, given an empty folder beside it, unless it is there.

    Of several processes that make it at a time, the first wins. Removes what killed ones left in the same place.
    """
    for left in target.parent.glob(f"{PREFIX}*"):
        with suppress(OSError), ExitStack() as held:  # in use, or gone meanwhile
            _lock(left, held, fcntl.LOCK_NB)
            if any(left.iterdir()):  # else its maker may not have locked it yet
                shutil.rmtree(left)
    if target.exists():
        return target
    work = Path(tempfile.mkdtemp(prefix=PREFIX, dir=target.parent))
    with ExitStack() as held:
        held.callback(shutil.rmtree, work, ignore_errors=True)
        with suppress(OSError):  # a file system without locks (some NFS), where none of these is ever removed either
            _lock(work, held)
        try:
            make(work)
            os.rename(work, target)
        except OSError:
            if not target.exists():  # else another process was first
                raise
    return target


def write(path: Path, data: Any) -> None:
    """Write a buffer of bytes to `path`, and to the disk; its folder is made if absent, what was there is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=path.parent) as work:
        whole = Path(work, path.name)
        with whole.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(whole, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _lock(place: Path, held: ExitStack, how: int = 0) -> None:
    """Lock a folder until `held` ends, or this process does, however it does. Raises OSError where that is not given."""
    handle = os.open(place, os.O_RDONLY)
    held.callback(os.close, handle)
    fcntl.flock(handle, fcntl.LOCK_EX | how)
