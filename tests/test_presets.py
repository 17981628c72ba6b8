"""What a study measures by default: the CPU's as it was, a GPU's in the precision that is deployed there."""

import pytest

from sam3lab import nvml
from sam3lab.study import presets, run
from sam3lab.study.notebook import Study


def resolved(notebook, device, **given):
    return presets.resolved(notebook, run.defaults(notebook) | {"device": device} | given, {})


def test_the_device_is_the_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr(nvml, "gpu", lambda: None)
    assert presets.device() == "cpu"
    monkeypatch.setattr(nvml, "gpu", lambda: "a GPU")
    assert presets.device() == "cuda"
    assert presets.resolved("01_runtimes", run.defaults("01_runtimes"), {})["checkpoint"] == "sam3"


@pytest.mark.parametrize("device", presets.DEVICES)
def test_every_empty_parameter_gets_the_devices_default(device):
    for notebook in run.names():
        known = resolved(notebook, device)
        assert set(known) == set(run.defaults(notebook))
        empty = {name for name in presets.NAMES if name in known and not known[name]}
        assert empty <= {"huge"} if device == "cpu" else not empty, notebook


def test_on_a_cpu_it_is_the_small_checkpoint_in_fp32():
    known = resolved("01_runtimes", "cpu")
    assert (known["checkpoint"], known["precision"], known["rounds"], known["huge"]) == ("sam3-nano", "fp32", 3, "")
    assert known["backends"] == ["transformers", "pytorch", "pytorch-compiled", "onnxruntime", "openvino"]
    assert resolved("03_prompts", "cpu")["rounds"] == 3


def test_on_a_gpu_it_is_the_published_architecture_in_fp16_beside_metas_own_package():
    known = resolved("01_runtimes", "cuda")
    assert (known["checkpoint"], known["precision"], known["huge"]) == ("sam3", "fp16", "sam3-huge")
    assert {"tensorrt", "meta", "meta-compiled"} <= set(known["backends"])
    assert resolved("06_calls", "cuda")["counts"] == [1, 2, 4, 8, 16]
    assert resolved("06_calls", "cuda")["batches"] == [1, 4, 8]


def test_what_is_given_comes_first_then_what_was_stored_then_the_default():
    given = run.defaults("02_resolution") | {"device": "cpu", "rounds": 7}
    stored = {"rounds": 2, "backends": ["transformers", "openvino"], "checkpoint": ""}
    known = presets.resolved("02_resolution", given, stored)
    assert known["rounds"] == 7 and known["backends"] == stored["backends"] and known["checkpoint"] == "sam3-nano"
    assert presets.resolved("02_resolution", given | {"device": ""}, {"device": "cuda"})["checkpoint"] == "sam3"
    assert known["seed"] == 0  # which is a value of its own


def test_who_gives_the_rounds_gets_no_more_unless_asked_for():
    given = run.defaults("01_runtimes") | {"device": "cuda"}
    assert (
        presets.resolved("01_runtimes", given, {})["most_rounds"] > presets.resolved("01_runtimes", given, {})["rounds"]
    )
    assert presets.resolved("01_runtimes", given | {"rounds": 2}, {})["most_rounds"] == 2
    assert presets.resolved("01_runtimes", given | {"rounds": 2, "most_rounds": 5}, {})["most_rounds"] == 5
    stored = presets.resolved("01_runtimes", given, {"rounds": 3, "most_rounds": 6})
    assert (stored["rounds"], stored["most_rounds"]) == (3, 6)


def test_rows_have_native_pytorch_in_every_precision_that_another_has():
    native = [("transformers", each) for each in ("fp32", "fp16", "bf16")]
    others = [("onnxruntime", "fp16"), ("meta", "bf16")]
    backends = ["transformers", "onnxruntime", "meta"]
    assert presets.rows(backends, "fp16") == native + others
    assert presets.rows(backends, "fp16", reference=False) == native[1:] + others
    assert presets.rows(["transformers", "openvino"], "fp32") == [("transformers", "fp32"), ("openvino", "fp32")]


def scope(**given):
    common = {"image": "chelsea", "prompt": "cat", "run": "/nowhere", "results": "", "measure": False, "figures": ""}
    return common | {"checkpoint": "sam3", "device": "cuda", "precision": "", "resolution": 1008} | given


def test_the_rows_of_the_notebook_on_runtimes_alone_are_measured_stage_by_stage():
    study = Study("05_precision", scope())
    modes = {row: study.case(*row).mode for row in presets.rows(presets.OWN["cuda"]["01_runtimes"]["backends"], "fp16")}
    assert set(modes.values()) == {"speed"} and len(modes) == 9
    assert study.case("transformers", "tf32").mode == study.case("onnxruntime", "bf16").mode == "pipeline"
    assert study.case("pytorch", batch=4).mode == study.case("transformers", checkpoint="sam3-huge").mode == "pipeline"
    assert study.case("meta").precision == "bf16" and study.case("onnxruntime").precision == "fp16"
    cpu = Study("05_precision", scope(checkpoint="sam3-nano", device="cpu", resolution=252))
    assert cpu.case("pytorch", "bf16").mode == "pipeline" and cpu.case("pytorch").mode == "speed"


def test_random_weights_are_scored_by_the_small_checkpoint_at_its_own_size(monkeypatch, tmp_path):
    study = Study("05_precision", scope(accuracy=True, scenes=8))
    monkeypatch.setattr(Study, "facts", {"native.sam3-nano": 252})
    (twin,) = study.twins([study.case("onnxruntime"), study.case("meta")])  # Meta's package knows no other architecture
    assert (twin.checkpoint, twin.resolution, twin.precision, twin.device) == ("sam3-nano", 252, "fp16", "cuda")
    assert Study("05_precision", scope(accuracy=True, scenes=8, checkpoint="/my/own")).scored == "/my/own"
    assert Study("05_precision", scope(accuracy=False, scenes=8)).scored == ""
    monkeypatch.setattr("sam3lab.model.checkpoint.DATA", tmp_path)  # where nothing is shipped
    assert Study("05_precision", scope(accuracy=True, scenes=8)).scored == ""
