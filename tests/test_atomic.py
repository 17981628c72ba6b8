"""What is written whole or not at all, under full disks, killed processes and two that make the same."""

import errno
import os
import subprocess
import sys

import pytest

from sam3lab import atomic


def fill(content):
    return lambda work: (work / "file").write_text(content)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_is_made_once(tmp_path):
    target = tmp_path / "target"
    assert atomic.folder(target, fill("first")) == target
    assert atomic.folder(target, fill("second")) == target
    assert (target / "file").read_text() == "first"
    assert names(tmp_path) == ["target"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), ValueError("no"), KeyboardInterrupt()]
)
def test_a_folder_that_cannot_be_filled_leaves_nothing(tmp_path, error):
    def make(work):
        fill("half")(work)
        raise error

    with pytest.raises(type(error)):
        atomic.folder(tmp_path / "target", make)
    assert names(tmp_path) == []


def test_of_two_that_make_the_same_the_first_wins(tmp_path):
    def make(work):
        atomic.folder(tmp_path / "target", fill("first"))
        fill("second")(work)

    assert (atomic.folder(tmp_path / "target", make) / "file").read_text() == "first"
    assert names(tmp_path) == ["target"]


HANGING = """
import sys, time
from pathlib import Path
from sam3lab import atomic
def make(work):
    (work / "file").write_text("half")
    print("filling", flush=True)
    time.sleep(60)
atomic.folder(Path(sys.argv[1]), make)
"""


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_fills_is_not(tmp_path):
    command = [sys.executable, "-c", HANGING, str(tmp_path / "target")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "filling\n"
        (work,) = tmp_path.iterdir()
        atomic.folder(tmp_path / "other", fill("whole"))
        assert names(work) == ["file"]
        process.kill()
    atomic.folder(tmp_path / "other", fill("whole"))
    assert names(tmp_path) == ["other"]


def test_where_there_are_no_locks_nothing_is_removed(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.EBADF, "Bad file descriptor")

    left = tmp_path / f"{atomic.PREFIX}left"
    left.mkdir()
    fill("half")(left)
    monkeypatch.setattr(atomic.fcntl, "flock", flock)
    atomic.folder(tmp_path / "target", fill("whole"))
    assert names(tmp_path) == [left.name, "target"]


def test_a_file_is_replaced_whole_or_left_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "new" / "file"
    atomic.write(path, b"old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="full"):
        atomic.write(path, b"new")
    assert path.read_bytes() == b"old"
    monkeypatch.undo()
    atomic.write(path, memoryview(b"new"))
    assert path.read_bytes() == b"new"
    assert names(path.parent) == ["file"]
