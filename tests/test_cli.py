"""The command line answers at once and turns bad input into one line."""

import subprocess
import sys
import time

import pytest

from sam3lab.cli import COMMANDS, main


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
