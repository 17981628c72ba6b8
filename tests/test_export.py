"""Exported graphs compute the model, every runtime takes them, and a tampered one reaches none."""

import csv
import json
import os
import shutil

import numpy as np
import onnx
import pytest
import torch

from sam3lab.backends import Artifacts
from sam3lab.cli import main
from sam3lab.errors import UserError
from sam3lab.export import cache, engine_builder, manifest
from sam3lab.export import onnx as export_onnx
from sam3lab.model.checkpoint import load_model
from sam3lab.paths import DATA

STAGES = ("image", "text", "detect")


@pytest.fixture(scope="module")
def graphs(small_checkpoint):
    return cache.graphs(small_checkpoint, 98, "fp32")


@pytest.fixture(scope="module")
def half_graphs(small_checkpoint):
    return cache.graphs(small_checkpoint, 84, "fp16")


@pytest.fixture
def copy(graphs, tmp_path):
    target = tmp_path / "graphs"
    assert cache.copy(graphs, target)
    return target


def session(path):
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def run_stages(directory, pixels, ids, mask, image_index, text_index):
    run = {stage: session(directory / f"{stage}.onnx") for stage in STAGES}
    features = run["image"].run(None, {"pixels": pixels})
    text = run["text"].run(None, {"ids": ids, "mask": mask})[0]
    names = list(export_onnx.INPUTS["detect"])
    return run["detect"].run(None, dict(zip(names, (*features, text, mask, image_index, text_index), strict=True)))


def make_inputs(resolution, batch, prompts):
    random = np.random.default_rng(batch)
    pixels = random.integers(0, 256, (batch, 3, resolution, resolution), dtype=np.uint8)
    mask = np.arange(32) < np.array([[3], [20], [9]])[:prompts]
    pairs = np.stack(np.meshgrid(np.arange(batch), np.arange(prompts), indexing="ij")).reshape(2, -1)
    return pixels, random.integers(0, 60, (prompts, 32)), mask, pairs[0], pairs[1]


@pytest.mark.parametrize(("batch", "prompts"), [(1, 1), (1, 3), (3, 2)])
def test_graphs_compute_the_model_at_any_batch_and_prompt_count(small_checkpoint, graphs, batch, prompts):
    inputs = make_inputs(98, batch, prompts)
    with torch.inference_mode():
        expected = load_model(small_checkpoint, 98)(*map(torch.from_numpy, inputs))
    for ours, theirs in zip(run_stages(graphs, *inputs), expected, strict=True):
        error = np.linalg.norm(ours - theirs.numpy()) / np.linalg.norm(theirs.numpy())
        assert ours.shape == theirs.shape
        assert error <= 1e-5


def test_half_precision_graphs(small_checkpoint, half_graphs):
    detect = onnx.load(half_graphs / "detect.onnx")
    types = {value.name: value.type.tensor_type.elem_type for value in (*detect.graph.input, *detect.graph.output)}
    assert types["features_4x"] == types["masks"] == onnx.TensorProto.FLOAT16
    assert types["boxes"] == onnx.TensorProto.FLOAT
    assert types["image_index"] == onnx.TensorProto.INT64
    inputs = make_inputs(84, 2, 3)
    with torch.inference_mode():
        expected = load_model(small_checkpoint, 84)(*map(torch.from_numpy, inputs))
    for ours, theirs in zip(run_stages(half_graphs, *inputs), expected, strict=True):
        assert np.linalg.norm(ours - theirs.numpy()) / np.linalg.norm(theirs.numpy()) <= 3e-2


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_tensorrt_parses_and_builds_them(graphs, half_graphs, precision):
    pytest.importorskip("tensorrt")
    directory = graphs if precision == "fp32" else half_graphs
    for stage, axes in export_onnx.INPUTS.items():
        assert engine_builder.build(directory / f"{stage}.onnx", axes, engine_builder.Options())


def test_openvino_reads_them(graphs):
    openvino = pytest.importorskip("openvino")
    for stage in STAGES:
        model = openvino.Core().read_model(graphs / f"{stage}.onnx")
        assert [port.get_any_name() for port in model.inputs] == list(export_onnx.INPUTS[stage])
        assert [port.get_any_name() for port in model.outputs] == export_onnx.OUTPUTS[stage]


def test_names_axes_and_opset(graphs):
    for stage in STAGES:
        model = onnx.load(graphs / f"{stage}.onnx")
        onnx.checker.check_model(model, full_check=True)
        assert model.opset_import[0].version == export_onnx.OPSET
        axes = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.input}
        assert {name: axis[0] for name, axis in axes.items()} == export_onnx.INPUTS[stage]
        assert all(isinstance(size, int) and size > 0 for axis in axes.values() for size in axis[1:])
        assert [value.name for value in model.graph.output] == export_onnx.OUTPUTS[stage]
        assert not any(node.metadata_props for node in model.graph.node)  # no paths of the exporting machine


def test_weights_beside_the_graph_when_they_are_too_large(small_checkpoint, graphs, tmp_path, monkeypatch):
    monkeypatch.setattr(export_onnx, "INLINE_LIMIT", 50_000)
    facts = export_onnx.export(small_checkpoint, tmp_path, 98)
    beside = [name for name in facts["files"] if name.endswith(".data")]
    assert beside
    manifest.verify(tmp_path)
    inputs = make_inputs(98, 1, 2)
    for ours, theirs in zip(run_stages(tmp_path, *inputs), run_stages(graphs, *inputs), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    os.rename(tmp_path / beside[0], tmp_path.parent / "elsewhere.data")
    with pytest.raises(UserError, match="is absent"):
        manifest.verify(tmp_path)
    os.rename(tmp_path.parent / "elsewhere.data", tmp_path / beside[0])
    stage = onnx.load(tmp_path / beside[0].removesuffix(".data"), load_external_data=False)
    for tensor in stage.graph.initializer:
        for entry in tensor.external_data:
            entry.value = entry.value.replace(beside[0], f"../{beside[0]}")
    (tmp_path / beside[0].removesuffix(".data")).write_bytes(stage.SerializeToString())
    (tmp_path / manifest.NAME).unlink()
    manifest.write(tmp_path, {})
    with pytest.raises(UserError, match=r"keeps tensor .* in '\.\./"):
        manifest.verify(tmp_path)


def test_a_second_export_is_a_lookup(small_checkpoint, graphs, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("exported again")

    monkeypatch.setattr(export_onnx, "export", fail)
    assert cache.graphs(small_checkpoint, 98, "fp32") == graphs
    with pytest.raises(AssertionError, match="exported again"):
        cache.graphs(small_checkpoint, 98, "fp16")
    with pytest.raises(AssertionError, match="exported again"):
        cache.graphs(small_checkpoint, 98, "fp32", opset=18)


def test_a_damaged_entry_of_the_cache_is_made_again_once_it_is_deleted(tmp_path):
    def make(work):
        (work / "stage.engine").write_text("whole")
        manifest.write(work, {})

    target = cache.entry(tmp_path / "key", make)
    (target / "stage.engine").write_text("other")
    with pytest.raises(
        UserError, match=rf"stage\.engine was changed .*: delete {target}, and it is made again"
    ) as refusal:
        cache.entry(target, make)
    assert "empty directory" not in str(refusal.value)
    shutil.rmtree(target)
    assert (cache.entry(target, make) / "stage.engine").read_text() == "whole"


@pytest.mark.parametrize("opset", [0, 17, 19, 99])
def test_an_opset_that_was_not_tried_is_refused_before_anything_is_loaded(small_checkpoint, monkeypatch, opset):
    monkeypatch.setattr(export_onnx, "load_model", lambda *_: pytest.fail("loaded"))
    with pytest.raises(UserError, match=f"opset {opset} was not tried: give one of 18, 20, 21, 22, 23, 24"):
        cache.graphs(small_checkpoint, 84, "fp32", opset)


def test_the_opsets_taken_are_those_measured():
    with (DATA / "opsets.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {int(row["opset"]) for row in rows} == set(export_onnx.OPSETS)
    assert {row["takes"] for row in rows if int(row["opset"]) == export_onnx.OPSET} == {"yes"}


def flip_a_byte(directory):
    path = directory / "text.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def hard_link(directory):
    os.link(directory / "text.onnx", directory.parent / "other-name.onnx")


def symbolic_link(directory):
    shutil.move(directory / "text.onnx", directory.parent / "text.onnx")
    os.symlink(directory.parent / "text.onnx", directory / "text.onnx")


def climb(directory):
    shutil.copy(directory / "text.onnx", directory.parent / "text.onnx")
    path = directory / manifest.NAME
    content = json.loads(path.read_text())
    content["files"]["../text.onnx"] = content["files"]["text.onnx"]
    path.write_text(json.dumps(content))


def add_a_file(directory):
    (directory / "weights.data").write_bytes(b"0")


def lose_the_manifest(directory):
    (directory / manifest.NAME).unlink()


def break_the_manifest(directory):
    (directory / manifest.NAME).write_text('{"format": 1, "files": 3}')


@pytest.mark.parametrize(
    "tamper", [flip_a_byte, hard_link, symbolic_link, climb, add_a_file, lose_the_manifest, break_the_manifest]
)
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_no_runtime_sees_a_tampered_graph(copy, small_checkpoint, tamper, backend):
    from sam3lab import backends

    prepare = backends.get(backend).prepare
    artifacts = Artifacts(small_checkpoint, 98, graphs=copy)
    if backend == "onnxruntime":
        assert prepare(artifacts).graphs == copy
    tamper(copy)
    with pytest.raises(UserError, match=str(copy)):
        prepare(artifacts)


def test_graphs_of_something_else_are_refused(copy, small_checkpoint):
    with pytest.raises(UserError, match="for resolution 98, not 84"):
        cache.exported(Artifacts(small_checkpoint, 84, graphs=copy), "fp32")
    with pytest.raises(UserError, match="for precision fp32, not fp16"):
        cache.exported(Artifacts(small_checkpoint, 98, graphs=copy), "fp16")


def test_the_command(small_checkpoint, tmp_path, capsys, graphs):
    target = tmp_path / "out"
    command = ["export", "--model-name", str(small_checkpoint), "--output-dir", str(target), "--resolution", "98"]
    assert main(command) == 0
    assert {path.name for path in target.iterdir()} == {"image.onnx", "text.onnx", "detect.onnx", manifest.NAME}
    assert all((target / f"{stage}.onnx").read_bytes() == (graphs / f"{stage}.onnx").read_bytes() for stage in STAGES)
    assert main(command) == 0
    assert "was there already" in capsys.readouterr().out
    assert main([*command[:-1], "84", "--precision", "fp16"]) == 2
    assert "holds another export" in capsys.readouterr().err
    for resolution, remedy in (
        ("99", "99 is not a multiple of 14: try 98"),
        ("0", "0 is not a positive multiple of 14"),
    ):
        assert main([*command[:-1], resolution]) == 2
        assert remedy in capsys.readouterr().err
    assert main([*command[:-1], "98", "--opset", "99"]) == 2
    assert "opset 99 was not tried" in capsys.readouterr().err
