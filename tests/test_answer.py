"""The one-page answer names the best runtime for each use, from recorded numbers, and says what it does not know."""

import math

import pytest

from sam3lab.bench.statistics import Estimate
from sam3lab.study import answer, numbers


def record(value, low, high, unit="ms"):
    return numbers.number(Estimate(value, low, high), unit)


@pytest.fixture
def known():
    found = {
        "runtimes.latency.transformers.fp32": record(200, 199, 201),
        "runtimes.latency.transformers.fp16": record(50, 49, 51),
        "runtimes.latency.onnxruntime.fp16": record(21, 20, 22),
        "runtimes.latency.pytorch-compiled.fp16": record(20, 19, 21),
        "runtimes.latency.meta.bf16": record(30, 29, 31),
        "runtimes.speedup.pytorch-compiled.fp16": record(2.5, 2.4, 2.6, "×"),
        "runtimes.gain.pytorch-compiled.fp16": record(10, 9.9, 10.1, "×"),
        "memory.peak.onnxruntime.fp16": record(2000, 1990, 2010, "MB"),
        "memory.peak.transformers.fp16": record(3000, 2990, 3010, "MB"),
        "calls.images.rate.onnxruntime.fp16": record(60, 59, 61, "images/s"),
        "calls.images.rate.transformers.fp16": record(25, 24, 26, "images/s"),
        "calls.images.most": numbers.number(8),
        "absent.01_runtimes.tensorrt.fp16": numbers.number("not run here: there is no TensorRT"),
        "absent.02_resolution.tensorrt.fp16": numbers.number("not run here: there is no TensorRT"),
    }
    counts = {"steps": (2, 3), "lines": (20, 15), "packages": (40, 12)}
    for column, (one, other) in counts.items():
        found[f"deployment.{column}.transformers"] = numbers.number(one)
        found[f"deployment.{column}.onnxruntime"] = numbers.number(other)
    return answer.placed(found, "a GPU", "cuda", "sam3")


def test_the_best_is_named_with_what_cannot_be_told_apart_from_it(known):
    use = answer.USES[0]
    assert answer.best(use, known) == (("pytorch-compiled", "fp16"), [("onnxruntime", "fp16")])
    found = answer.sentences(known, {})
    _, first, limits, measured, native = found["image"]
    assert (first, limits) == ("PyTorch (compiled) fp16", ", or within the noise ONNX Runtime fp16")
    assert measured.startswith("20.0") and native.startswith("50.0")  # native PyTorch in the same precision
    assert found["memory"][1] == "ONNX Runtime fp16"
    assert found["images"][0] == "Many images, 8 at most a call" and found["images"][1] == "ONNX Runtime fp16"
    assert (
        found["deploy"][1] == "PyTorch (transformers)"
        and found["deploy"].measured == "2 steps, 20 lines, 40 packages to run"
    )
    assert "cold" not in found and "cpu" not in found


def test_every_use_has_a_line_whether_or_not_it_was_measured(known):
    lines = answer.listed(known, answer.sentences(known, {}))
    assert {use.name for use in answer.USES} | {"deploy", "cpu", "headline", "unproven"} == set(lines)
    assert lines["cold"] == "not measured on this machine: `sam3lab study --notebook 07_deployment`"
    assert lines["cpu"] == "no CPU was measured"
    assert lines["image"].startswith("**PyTorch (compiled) fp16**, or within the noise ONNX Runtime fp16 (20.0")
    assert lines["unproven"] == "TensorRT (there is no TensorRT)"
    assert (
        "**PyTorch (compiled) fp16** is the fastest of the runtimes measured, not to be told apart" in lines["headline"]
    )
    assert "2.50 [2.40, 2.60]× native PyTorch's speed, 10.0" in lines["headline"]


def test_what_one_round_or_one_runtime_shows_is_no_choice(known):
    known |= {"deployment.cold.transformers.fp16": record(9, math.nan, math.nan, "s")}
    assert answer.sentences(known, {})["cold"].limits == ", the only one measured, going by a single round"
    sure = known | {"deployment.cold.transformers.fp16": record(9, 8, 10, "s")}
    assert answer.sentences(sure, {})["cold"].limits == ", the only one measured"
    known |= {"deployment.cold.onnxruntime.fp16": record(4, math.nan, math.nan, "s")}
    cold = answer.sentences(known, {})["cold"]
    assert (cold.first, cold.limits, cold.measured) == ("ONNX Runtime fp16", ", going by a single round", "4.00 s")
    assert (
        "**ONNX Runtime fp16**, going by a single round (4.00 s; native" in answer.listed(known, {"cold": cold})["cold"]
    )


def test_the_headline_says_once_what_the_fastest_cannot_be_told_apart_from(known):
    assert (
        "fp16** is the fastest of the runtimes measured, not to be told apart from ONNX Runtime fp16: "
        in answer.headline(known)
    )
    known["runtimes.latency.meta.bf16"] = record(20.5, 19.5, 21.5)
    tied = ", not to be told apart from ONNX Runtime fp16 or SAM 3 (Meta) bf16: "
    assert tied in answer.headline(known)
    known["runtimes.latency.pytorch-compiled.fp16"] = record(10, 9, 11)
    assert "told apart" not in answer.headline(known)


def test_the_fastest_is_of_those_measured_only_where_one_was_not(known):
    assert "is the fastest of the runtimes measured" in answer.headline(known)
    complete = {key: value for key, value in known.items() if not key.startswith("absent.")}
    assert "is the fastest runtime" in answer.headline(complete)


def test_who_has_a_cpu_alone_is_answered_from_a_cpus_published_numbers(known):
    cpu = {
        "runtimes.latency.transformers.fp32": record(40, 39, 41),
        "runtimes.latency.openvino.fp32": record(20, 19, 21),
        "runtimes.speedup.openvino.fp32": record(2, 1.9, 2.1, "×"),
    }
    cpu = answer.placed(cpu, "some CPU", "cpu", "sam3-nano")
    _, take, limits, measured, where = answer.sentences(known, cpu)["cpu"]
    assert (
        (take, limits) == ("OpenVINO", "")
        and measured.startswith("2.00")
        and "some CPU" in where
        and "sam3-nano" in where
    )
    on_the_cpu = answer.listed(cpu, answer.sentences(cpu, {}))
    assert on_the_cpu["cpu"] == on_the_cpu["image"] and on_the_cpu["unproven"] == "any GPU"


def test_the_figure_has_the_best_at_one_whether_less_or_more_is_better(known):
    frame = answer.frame(known)
    assert (frame.groupby("use")["value"].min() == 1).all()
    rates = frame[frame["use"].str.startswith("Many images")].set_index("backend")
    assert rates.loc["transformers", "value"] == pytest.approx(60 / 25)
    assert rates.loc["transformers", "low"] < rates.loc["transformers", "value"] < rates.loc["transformers", "high"]


def test_without_any_number_there_is_no_answer_and_no_error():
    empty = answer.placed({}, "a machine", "cuda", "sam3")
    assert answer.sentences(empty, {}) == {} and answer.frame(empty).empty
    assert answer.headline(empty) == "The runtimes were not compared yet, which the notebook 01_runtimes does."
