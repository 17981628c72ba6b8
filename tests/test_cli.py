"""The command line answers at once and turns bad input into one line."""

import argparse
import errno
import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

import sam3lab
from sam3lab import cli, install
from sam3lab.cli import COMMANDS, main
from sam3lab.paths import ROOT


@pytest.mark.alone
def test_help_is_quick_and_imports_nothing_heavy():
    times = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "sam3lab", "--help"], capture_output=True, text=True, check=True)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5
    assert all(name in done.stdout for name in COMMANDS)
    heavy = "torch numpy pandas matplotlib onnxruntime openvino transformers papermill"
    code = f"import sys, sam3lab.cli; print([m for m in {heavy.split()} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert "usage: sam3lab " + name in capsys.readouterr().out


def test_bad_input_is_one_line_and_status_2(tmp_path, capsys):
    assert main(["export", "--model-name", "sam9", "--output-dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("sam3lab export: no checkpoint 'sam9'")
    assert error.count("\n") == 1


@pytest.fixture
def command(monkeypatch):
    """`sam3lab segment x y` runs the function that this is given."""

    def does(run):
        monkeypatch.setattr("sam3lab.segment.run", run)
        return lambda: main(["segment", "x", "y"])

    return does


def test_a_file_that_cannot_be_written_is_one_line_and_status_2(tmp_path, capsys, command):
    (tmp_path / "file").touch()
    assert command(lambda args: (tmp_path / "file" / "run").mkdir())() == 2
    error = capsys.readouterr().err
    assert error.startswith(
        f"sam3lab segment: cannot read or write {tmp_path / 'file' / 'run'} (Not a directory): name"
    )
    assert error.count("\n") == 1


def test_a_disk_that_is_full_is_one_line_and_status_2(capsys, command):
    def run(args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # of no file, as `write` raises it

    assert command(run)() == 2
    error = capsys.readouterr().err
    assert "cannot read or write a file (No space left on device): name another place" in error
    assert error.count("\n") == 1


def test_a_cache_that_is_a_file_is_one_line_and_status_2(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SAM3LAB_CACHE", str(tmp_path / "file"))
    assert main(["export", "--model-name", "sam3-nano", "--output-dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path / "file") in error and "SAM3LAB_CACHE" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a mistake"),
        OSError(errno.EIO, os.strerror(errno.EIO)),  # of no file
        FileNotFoundError(
            errno.ENOENT, "No such file", str(Path(sam3lab.__file__).parent / "serve/absent.css")
        ),  # ours
    ],
)
def test_other_errors_keep_their_traceback(error, command):
    def run(args):
        raise error

    with pytest.raises(type(error)) as raised:
        command(run)()
    assert raised.value is error


def test_random_weights_are_told_of_once(monkeypatch, capsys):
    monkeypatch.setattr("sam3lab.export.cli.run", lambda args: 0)
    assert main(["export", "--model-name", "sam3-huge", "--output-dir", "x"]) == 0
    assert capsys.readouterr().err == "The weights of sam3-huge are random: what it finds means nothing.\n"
    assert main(["export", "--model-name", "sam3-nano", "--output-dir", "x"]) == 0
    cli._tell_random(argparse.Namespace(command="segment", checkpoint="sam3"))  # it says so itself
    cli._tell_random(argparse.Namespace(command="build-engine", checkpoint=None))
    assert capsys.readouterr().err == ""


def test_what_is_missing_is_installed_by_what_the_clone_has():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    sources = "".join(path.read_text() for path in (ROOT / "sam3lab").rglob("*.py"))
    named = re.findall(r"install\.remedy\('(\w+)'\)", sources)
    assert set(named) == {"gpu", "triton"} <= extras.keys()
    assert "pip install sam3lab" not in sources  # it is on no index
    assert re.search(r"^meta:", (ROOT / "Makefile").read_text(), re.MULTILINE) and "make meta" in install.META
    assert install.remedy("cpu", "gpu").endswith("pip install -c constraints.txt -e '.[cpu]' or -e '.[gpu]'")
