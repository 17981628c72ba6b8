import argparse
import io
import json

import pandas as pd
import pytest
from rich.console import Console

from sam3lab import paths
from sam3lab.bench import cli, doctor, tables
from sam3lab.cli import main
from sam3lab.errors import UserError
from tests.bench_run import REFERENCE, make_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def measure(checkpoint, run_dir, *options):
    parser = argparse.ArgumentParser()
    cli.add_measure_arguments(parser)
    short = ["--rounds", "1", "--min-samples", "2", "--min-seconds", "0", "--mode", "model", "--reference", REFERENCE]
    fixed = ["--checkpoint", checkpoint, "--run-dir", str(run_dir), "--resolution", "28", *short]
    return cli.measure(parser.parse_args([*fixed, *options]))


def test_prints_medians_twins_and_ends_well(checkpoint, tmp_path, capsys):
    assert measure(checkpoint, tmp_path, "--backend", f"{REFERENCE},tests.fakes:Other") == 0
    printed = capsys.readouterr().out
    assert "pipeline_cached" in printed and "startup" in printed and "rss_peak" in printed
    assert "reference" in printed and "A/A" in printed and "Failures" not in printed


def test_what_does_not_agree_or_crashes_ends_with_1_and_its_log(checkpoint, tmp_path, capsys):
    assert (
        measure(checkpoint, tmp_path, "--backend", REFERENCE, "--backend", "tests.fakes:Wrong,tests.fakes:Raises") == 1
    )
    printed = capsys.readouterr().out
    assert "Failures" in printed and "parity" in printed and "no text today" in printed and "-r0.log" in printed


def test_reasons_are_printed_as_they_are(tmp_path):
    """Square brackets, of an extra or of a path, are no markup."""
    reason = "pip install sam3lab[gpu], or read [/models/graphs]"
    failure = {"label": "[x] fp32", "round": 0, "status": "failed", "reason": reason, "log": "log[1].txt"}
    console = Console(width=400, file=io.StringIO())
    console.print(tables.failures(pd.DataFrame([failure]), tmp_path))
    printed = console.file.getvalue()
    assert reason in printed and "[x] fp32" in printed and "log[1].txt" in printed


def test_a_backend_that_was_named_must_run(checkpoint, tmp_path):
    assert measure(checkpoint, tmp_path, "--backend", f"{REFERENCE},tests.fakes:Absent") == 1


def test_cases_from_a_file(checkpoint, tmp_path, capsys):
    file = tmp_path / "cases.json"
    file.write_text(json.dumps([{"checkpoint": checkpoint, "backend": REFERENCE, "resolution": 28, "mode": "model"}]))
    assert measure("unused", tmp_path / "run", "--cases", str(file)) == 0
    for text in ("{", "{}", '[{"resolutoin": 28}]'):
        file.write_text(text)
        with pytest.raises(UserError):
            measure("unused", tmp_path / "run", "--cases", str(file))


@pytest.mark.parametrize(
    "options",
    [["--precision", "fp33"], ["--image", "nowhere.png"], ["--mode", "quick"], ["--mode", "accuracy", "--scenes", "0"]],
)
def test_bad_options_are_refused(checkpoint, tmp_path, options):
    with pytest.raises(UserError):
        measure(checkpoint, tmp_path, "--backend", REFERENCE, *options)


@pytest.mark.parametrize("option", ["--backend", "--precision", "--resolution", "--batch"])
def test_a_list_of_nothing_is_refused(option, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["measure", option, ","])
    assert ended.value.code == 2 and "',' names nothing" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["", "a/b", "..", "."])
def test_a_run_has_a_plain_name(name, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(paths, "RUNS", tmp_path / "runs")
    assert main(["measure", "--name", name]) == 2
    assert "is no plain name" in capsys.readouterr().err and not (tmp_path / "runs").exists()


def test_doctor_tells_of_every_backend_and_why_not(capsys):
    options = argparse.Namespace(graph=False, checkpoint=None, precision=None, resolution=None, device=None)
    assert cli.doctor(options) == 0
    printed = capsys.readouterr().out
    for word in (
        "transformers",
        "onnxruntime",
        "openvino",
        "cpu",
        "cuda",
        "fp32",
        "int8",
        "Why not",
        "cache",
        "threads",
    ):
        assert word in printed


def test_doctor_groups_reasons():
    reasons = {("a", "cpu", p): "no driver" for p in ("fp32", "tf32", "bf16", "fp16", "int8", "fp8")}
    reasons |= {("b", "cpu", "fp32"): None}
    reasons |= {("b", "cpu", p): f"precision {p} is unknown" for p in ("int8", "fp8")}
    assert doctor.grouped(reasons) == {"no driver": ["a on cpu"], "the precision is unknown": ["b on cpu in int8 fp8"]}
