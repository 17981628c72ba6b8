"""TensorRT's side of the export: the mixed-precision plan is in the graphs, the real builder takes every one, and no
engine reaches a runtime that was not built for it. Building tests are skipped where there is no tensorrt."""

import argparse
import io
import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from sam3lab.bench import parity
from sam3lab.errors import UserError
from sam3lab.export import cache, engine, engine_accumulation, engine_builder, engine_cli, engine_profiles, manifest
from sam3lab.export.engine_builder import Options
from sam3lab.export.engine_progress import Progress
from sam3lab.export.mixed import mix
from sam3lab.export.onnx import INPUTS, MIXED, OUTPUTS
from sam3lab.model.checkpoint import load_model
from sam3lab.paths import DATA
from tests.test_export import make_inputs, session

NANO = DATA / "checkpoints" / "sam3-nano"
SIDES = {"small": 84, "nano": 252}
WIDTHS = (24, 32)  # of the small checkpoint's text encoder, and of all else in it
HALF = {"fp16-mixed": TensorProto.FLOAT16, "bf16-mixed": TensorProto.BFLOAT16}
PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose", "Attention")
NORMS = ("LayerNormalization", "GroupNormalization")
PLANS = ["fp16-mixed", pytest.param("bf16-mixed", marks=pytest.mark.slow)]  # an export takes 20 s


@pytest.fixture(scope="module")
def graphs(small_checkpoint):
    """A function from checkpoint and precision to the directory of graphs."""
    checkpoints = {"small": small_checkpoint, "nano": NANO}
    return lambda checkpoint, precision: cache.graphs(checkpoints[checkpoint], SIDES[checkpoint], precision)


@pytest.fixture
def trt():
    return pytest.importorskip("tensorrt")


class Typed:
    """A graph whose values' types and shapes are inferred."""

    def __init__(self, path):
        graph = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True).graph
        self.nodes = list(graph.node)
        self.weights = {tensor.name: tensor for tensor in graph.initializer}
        infos = (*graph.value_info, *graph.input, *graph.output)
        self.types = {info.name: info.type.tensor_type.elem_type for info in infos}
        self.types |= {name: tensor.data_type for name, tensor in self.weights.items()}
        shapes = {info.name: [dim.dim_value for dim in info.type.tensor_type.shape.dim] for info in infos}
        self.tokens = {name for name, shape in shapes.items() if len(shape) == 3 and shape[-1] in WIDTHS}

    def of(self, *kinds):
        return [node for node in self.nodes if node.op_type in kinds]

    def floats(self, node):
        """Types of a node's floating-point inputs and outputs."""
        types = {self.types[name] for name in (*node.input, *node.output) if name}
        return types & {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16}


@pytest.mark.parametrize("precision", PLANS)
@pytest.mark.parametrize("stage", INPUTS)
def test_the_plan_is_written_in_the_graph(graphs, stage, precision):
    graph, half = Typed(graphs("small", precision) / f"{stage}.onnx"), HALF[precision]
    assert graph.of(*PRODUCTS)
    assert {graph.types[name] for node in graph.of(*PRODUCTS) for name in node.input if name} == {half}
    assert {graph.types[node.output[0]] for node in graph.of(*PRODUCTS)} == {half}
    assert graph.of(*NORMS)
    assert all(graph.floats(node) == {TensorProto.FLOAT} for node in graph.of(*NORMS))
    # a residual addition is of two computed values, tokens by channels; the addition of a bias is part of a product
    residual = [
        node
        for node in graph.of("Add")
        if node.output[0] in graph.tokens and not any(name in graph.weights for name in node.input)
    ]
    assert len(residual) >= {"image": 8, "text": 4, "detect": 12}[stage]
    assert all(graph.floats(node) == {TensorProto.FLOAT} for node in residual)
    delicate = graph.of("Log", "Sigmoid", "Sin", "Cos", "Sign", "Abs", "Div", "Sub")
    assert all(graph.floats(node) <= {TensorProto.FLOAT} for node in delicate)


@pytest.mark.parametrize("precision", PLANS)
def test_rotary_turns_are_float32(graphs, precision):
    graph = Typed(graphs("small", precision) / "image.onnx")
    turns = graph.of("Mul")
    assert len(turns) == 4 * 2 * 4  # layers, queries and keys, products
    assert all(graph.floats(node) == {TensorProto.FLOAT} for node in turns)


@pytest.mark.parametrize("precision", PLANS)
def test_weights_are_stored_once_and_not_cast(graphs, precision):
    def weights(graph):
        """Sizes of the weights of products, each as often as it is stored."""
        names = {name for node in graph.of(*PRODUCTS) for name in node.input if name in graph.weights}
        shapes = [graph.weights[name].dims for name in names]
        return Counter(int(np.prod(shape)) for shape in shapes if len(shape) > 1)

    for stage in INPUTS:
        mixed, full = (Typed(graphs("small", name) / f"{stage}.onnx") for name in (precision, "fp32"))
        assert not [node.name for node in mixed.of("Cast") if node.input[0] in mixed.weights]
        assert weights(mixed) == weights(full)
        assert weights(mixed).total() >= 9


@pytest.mark.parametrize("precision", PLANS)
def test_types_at_the_edges(graphs, precision):
    types = {}
    for stage in INPUTS:
        graph = onnx.load(graphs("small", precision) / f"{stage}.onnx").graph
        types |= {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)}
    assert {types[name] for name in (*OUTPUTS["image"], *OUTPUTS["text"])} == {HALF[precision]}
    assert {types[name] for name in OUTPUTS["detect"]} == {TensorProto.FLOAT}
    assert types["pixels"] == TensorProto.UINT8


def raw_outputs(values, inputs, path):
    """Write what parity compares."""
    names = {"features_4x": "features_0", "features_2x": "features_1", "features_1x": "features_2"}
    arrays = {names.get(name, name): np.asarray(value, dtype=np.float32) for name, value in values.items()}
    arrays["text"] = arrays.pop("text_features")
    np.savez(path, inputs=np.array("same"), text_mask=inputs[2], **arrays)
    return path


def run_graphs(directory, inputs):
    values = dict(zip(("pixels", "ids", "mask", "image_index", "text_index"), inputs, strict=True))
    for stage in INPUTS:
        outputs = session(directory / f"{stage}.onnx").run(None, {name: values[name] for name in INPUTS[stage]})
        values |= dict(zip(OUTPUTS[stage], outputs, strict=True))
    return {name: values[name] for stage in OUTPUTS for name in OUTPUTS[stage]}


def run_model(model, inputs):
    pixels, ids, mask, image_index, text_index = map(torch.from_numpy, inputs)
    with torch.inference_mode():
        features, text = model.image_encoder(pixels), model.text_encoder(ids, mask)
        outputs = model.detector(*features, text, mask, image_index, text_index)
    names = [name for stage in OUTPUTS for name in OUTPUTS[stage]]
    return {name: value.float().numpy() for name, value in zip(names, (*features, text, *outputs), strict=True)}


@pytest.mark.parametrize("checkpoint", SIDES)
def test_fp16_graphs_keep_parity(checkpoint, graphs, small_checkpoint, tmp_path):
    inputs = make_inputs(SIDES[checkpoint], 2, 3)
    model = load_model(NANO if checkpoint == "nano" else small_checkpoint, SIDES[checkpoint])
    expected = raw_outputs(run_model(model, inputs), inputs, tmp_path / "expected.npz")
    mixed = raw_outputs(run_graphs(graphs(checkpoint, "fp16-mixed"), inputs), inputs, tmp_path / "mixed.npz")
    verdict = parity.compare(expected, mixed, "fp16")
    assert verdict["passed"], verdict["rows"]
    errors = {row["output"]: row.get("relative_error") for row in verdict["rows"]}
    assert errors["features_0"] > 1e-5  # it is not float32 after all


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_plan_keeps_parity_in_pytorch(small_checkpoint, tmp_path, precision):
    inputs = make_inputs(84, 2, 3)
    model = load_model(small_checkpoint, 84)
    expected = raw_outputs(run_model(model, inputs), inputs, tmp_path / "expected.npz")
    mixed = mix(load_model(small_checkpoint, 84), getattr(torch, MIXED[f"{precision}-mixed"]))
    verdict = parity.compare(expected, raw_outputs(run_model(mixed, inputs), inputs, tmp_path / "m.npz"), precision)
    assert verdict["passed"], verdict["rows"]
    again = run_model(model, inputs)["logits"]
    np.testing.assert_array_equal(again, np.load(expected)["logits"])  # the plan stays with the model it was given to


def test_sums_in_float32_are_said_as_tensorrt_has_it(graphs, tmp_path):
    """Casts around every matrix product, no weight stored twice, and the same values where sums are float32 anyway."""
    inputs, source = make_inputs(84, 2, 3), graphs("small", "fp16-mixed")
    for stage in INPUTS:
        (tmp_path / f"{stage}.onnx").write_bytes(engine_accumulation.in_float32(source / f"{stage}.onnx"))
        onnx.checker.check_model(tmp_path / f"{stage}.onnx", full_check=True)
        graph, plain = Typed(tmp_path / f"{stage}.onnx"), Typed(source / f"{stage}.onnx")
        assert graph.weights.keys() == plain.weights.keys()
        makers = {node.output[0]: node for node in graph.nodes}
        readers = {name: node for node in graph.nodes for name in node.input}
        assert len(graph.of("MatMul", "Gemm")) == len(plain.of("MatMul", "Gemm")) > 8
        for node in graph.of("MatMul", "Gemm"):
            assert {makers[name].op_type for name in node.input} == {"Cast"}
            assert {graph.types[makers[name].input[0]] for name in node.input} == {TensorProto.FLOAT16}
            back = readers[node.output[0]]
            assert (back.op_type, graph.types[back.output[0]]) == ("Cast", TensorProto.FLOAT16)
    wide, half = run_graphs(tmp_path, inputs), run_graphs(source, inputs)
    for name, value in wide.items():
        np.testing.assert_allclose(value, half[name], rtol=2e-2, atol=2e-2)


def test_weights_stay_float16_in_the_engine(trt, graphs):
    """Else an engine would hold them twice as large, and compute in float32."""
    path, axes = graphs("nano", "fp16-mixed") / "text.onnx", INPUTS["text"]
    half, wide = (engine_builder.build(path, axes, Options(wide_sums=sums)).nbytes for sums in (False, True))
    assert abs(wide - half) < 0.05 * path.stat().st_size


def test_a_residual_stream_beyond_float16(small_checkpoint, tmp_path):
    """What plain float16 does not survive: one channel that grows to 1e5 in the middle of the image encoder."""

    def grown():
        model = load_model(small_checkpoint, 84)
        layers = model.image_encoder.layers
        for layer, grows in zip(layers, (5e4, 5e4, -5e4, -5e4), strict=True):
            layer.mlp.fc2.bias.data[0] += grows
        for layer in layers[1:]:  # whose norms divide by what that channel makes of the deviation
            for norm in (layer.layer_norm1, layer.layer_norm2):
                norm.weight.data *= 1e4
                norm.weight.data[0] = 0
        return model

    inputs = make_inputs(84, 1, 2)
    expected = raw_outputs(run_model(grown(), inputs), inputs, tmp_path / "expected.npz")
    mixed = run_model(mix(grown(), torch.float16), inputs)
    assert parity.compare(expected, raw_outputs(mixed, inputs, tmp_path / "mixed.npz"), "fp16")["passed"]
    plain = run_model(grown().half(), inputs)
    assert not parity.compare(expected, raw_outputs(plain, inputs, tmp_path / "plain.npz"), "fp16")["passed"]


@pytest.mark.parametrize(
    ("checkpoint", "precision"),
    [
        ("nano", "fp32"),
        ("nano", "fp16"),
        pytest.param("nano", "bf16", marks=pytest.mark.slow),
        pytest.param("small", "fp32", marks=pytest.mark.slow),
        pytest.param("small", "fp16", marks=pytest.mark.slow),
        pytest.param("small", "bf16", marks=pytest.mark.slow),
    ],
)
def test_every_graph_and_profile_builds(trt, graphs, checkpoint, precision, tmp_path, monkeypatch):
    source = graphs(checkpoint, engine.GRAPHS[precision])
    monkeypatch.setenv("SAM3LAB_CACHE", str(tmp_path))
    directory = engine.engines(source, precision)
    assert engine.timing_cache(engine.machine()).stat().st_size > 0
    found = manifest.verify(directory)
    assert {name for name in found["files"]} == {f"{stage}.engine" for stage in INPUTS}
    assert found["precision"] == precision
    assert found["options"]["profiles"] == [{k: list(v) for k, v in p.items()} for p in engine_profiles.PROFILES]


@pytest.mark.parametrize("precision", PLANS)
def test_tensorrt_keeps_the_plan(trt, graphs, precision):
    """What its parser makes of the graph has products in half precision and norms in float32 as well."""
    half = trt.DataType.HALF if precision == "fp16-mixed" else trt.DataType.BF16
    kinds = trt.LayerType
    products = (kinds.MATRIX_MULTIPLY, kinds.CONVOLUTION, kinds.DECONVOLUTION, kinds.ATTENTION_INPUT)
    for stage in INPUTS:
        builder = trt.Builder(engine_builder.logger())
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, engine_builder.logger())
        assert parser.parse_from_file(str(graphs("small", precision) / f"{stage}.onnx"))
        layers = [network.get_layer(index) for index in range(network.num_layers)]
        taken = {layer.get_input(0).dtype for layer in layers if layer.type in products}
        assert taken == {half}
        assert {layer.get_input(0).dtype for layer in layers if layer.type == kinds.NORMALIZATION} == {trt.float32}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_published_architecture_builds(trt, tmp_path, monkeypatch):
    """sam3 at 1008², random weights, fp16. On two shared cores: 120 s for the graphs, 35, 14 and 15 s for engines of 946,
    833 and 117 MB, 10 GB of memory.
    """
    from sam3lab.model.checkpoint import resolve

    monkeypatch.setenv("SAM3LAB_CACHE", str(tmp_path))  # some gigabytes, which are not to stay
    exported = cache.graphs(resolve("sam3"), 1008, "fp16-mixed")
    found = manifest.verify(engine.engines(exported, "fp16", shown=True))
    assert 454e6 * 2 < found["files"]["image.engine"]["bytes"] < 454e6 * 2 * 1.1  # its weights, once, in float16


def test_built_once_then_looked_up(trt, graphs, tmp_path, monkeypatch):
    source = graphs("small", "fp32")
    monkeypatch.setenv("SAM3LAB_CACHE", str(tmp_path))
    built = []
    monkeypatch.setattr(engine_builder, "build", lambda graph, *_: built.append(graph.stem) or b"an engine")
    one = Options(profiles=engine_profiles.PROFILES[:1])
    first = engine.engines(source, "fp32", one)
    assert built == list(INPUTS)
    assert engine.engines(source, "fp32", one) == first
    assert built == list(INPUTS)
    assert engine.engines(source, "tf32", one) != first
    assert not [path for path in first.parent.iterdir() if path.name.startswith(".")]  # nothing half-made is left


HERE = {
    "tensorrt": "11.4.0",
    "tensorrt_library": "110400",
    "gpu": "NVIDIA H200",
    "gpu_capability": "9.0",
    "gpu_driver": "580.1",
}
GRAPHS = {"files": {f"{stage}.onnx": {"bytes": 1, "sha256": stage} for stage in INPUTS}}


def test_the_key_holds_every_ingredient(monkeypatch, tmp_path):
    other = {"files": GRAPHS["files"] | {"text.onnx": {"bytes": 1, "sha256": "changed"}}}
    keys = {
        engine.key(GRAPHS, HERE, Options()),
        engine.key(other, HERE, Options()),
        *(engine.key(GRAPHS, HERE | {name: "changed"}, Options()) for name in HERE),
        engine.key(GRAPHS, HERE, Options(tf32=True)),
        engine.key(GRAPHS, HERE, Options(wide_sums=True)),
        engine.key(GRAPHS, HERE, Options(workspace=2**31)),
        engine.key(GRAPHS, HERE, Options(level=5)),
        engine.key(GRAPHS, HERE, Options(profiles=engine_profiles.PROFILES[:1])),
    }
    assert len(keys) == 1 + 1 + len(HERE) + 5
    assert engine.key(GRAPHS, dict(reversed(HERE.items())), Options()) in keys
    source = tmp_path / "changed.py"
    source.write_text("# another builder")
    monkeypatch.setattr(engine_builder, "__file__", str(source))
    assert engine.key(GRAPHS, HERE, Options()) not in keys


@pytest.fixture
def engines(tmp_path, monkeypatch):
    """A directory as `engine.engines` leaves it, said to be of the machine that HERE says this is."""
    monkeypatch.setattr(engine, "machine", lambda: dict(HERE))
    for stage in INPUTS:
        (tmp_path / f"{stage}.engine").write_bytes(stage.encode() * 100)
    manifest.write(tmp_path, HERE | {"precision": "fp16", "resolution": 84})
    return tmp_path


def test_engines_of_this_machine_are_taken(engines, monkeypatch):
    assert engine.verify(engines)["precision"] == "fp16"
    monkeypatch.setattr(engine, "machine", lambda: HERE | {"gpu_driver": "590.1"})  # a newer driver runs them too
    assert engine.verify(engines)


@pytest.mark.parametrize("name", ["tensorrt", "gpu", "gpu_capability"])
def test_engines_of_another_machine_are_refused(engines, monkeypatch, name):
    monkeypatch.setattr(engine, "machine", lambda: HERE | {name: "another"})
    with pytest.raises(UserError, match=f"built for the .* {HERE[name]}, and this machine has another.*build-engine"):
        engine.verify(engines)


def test_engines_built_without_a_gpu_are_refused(engines, monkeypatch):
    here = HERE | dict.fromkeys(("gpu", "gpu_capability", "gpu_driver"), engine.NO_GPU)
    manifest.write(engines, here)
    monkeypatch.setattr(engine, "machine", lambda: here)
    with pytest.raises(UserError, match="built without a GPU"):
        engine.verify(engines)


def test_a_flipped_byte_is_refused(engines):
    data = bytearray((engines / "image.engine").read_bytes())
    data[7] ^= 1
    (engines / "image.engine").write_bytes(data)
    with pytest.raises(UserError, match=r"image\.engine was changed"):
        engine.verify(engines)


def test_graphs_of_another_precision_are_refused(trt, graphs):
    with pytest.raises(UserError, match="fp32 graphs, and engines in fp16 are built from fp16-mixed ones"):
        engine.engines(graphs("small", "fp32"), "fp16")
    with pytest.raises(UserError, match="no engine is built in int8: fp32"):
        engine.engines(graphs("small", "fp32"), "int8")


def test_a_graph_that_is_not_taken_names_its_node(trt, tmp_path):
    value = onnx.helper.make_tensor_value_info("x", TensorProto.FLOAT, ["images", 2])
    out = onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT, ["images", 2])
    node = onnx.helper.make_node("Frobnicate", ["x"], ["y"], "culprit", domain="nowhere")
    imports = [onnx.helper.make_opsetid("", 23), onnx.helper.make_opsetid("nowhere", 1)]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [value], [out]), opset_imports=imports)
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(UserError, match=r"odd\.onnx, because of node culprit \(Frobnicate\)"):
        engine_builder.build(tmp_path / "odd.onnx", {"x": "images"}, Options())
    (tmp_path / "no.onnx").write_bytes(b"not a graph")
    with pytest.raises(UserError, match=r"no\.onnx, because of the file"):
        engine_builder.build(tmp_path / "no.onnx", {"x": "images"}, Options())


class Watching(Progress):
    """Counts, and cancels after so many steps."""

    def __init__(self, most=10**9):
        super().__init__("text", shown=False)
        self.events, self.said, self.most, self.threads = [], [], most, set()

    def start(self, phase, parent, steps):
        self.threads.add(threading.current_thread())
        self.events.append(("start", phase, parent, steps))
        super().start(phase, parent, steps)

    def say(self, text):
        self.said.append(text)

    def step(self, phase):
        self.events.append(("step", phase))
        if len([event for event in self.events if event[0] == "step"]) >= self.most:
            self.cancel()
        return super().step(phase)

    def finish(self, phase):
        self.events.append(("finish", phase))
        super().finish(phase)


def test_progress_is_told_of_every_phase(trt, graphs):
    watching = Watching()
    built = engine_builder.build(graphs("small", "fp32") / "text.onnx", INPUTS["text"], Options(), None, watching)
    assert built.nbytes > 1000
    started = Counter(event[1] for event in watching.events if event[0] == "start")
    assert started == Counter(event[1] for event in watching.events if event[0] == "finish")
    roots = [event for event in watching.events if event[0] == "start" and event[2] is None]
    assert roots and all(event[3] > 0 for event in roots)
    assert sum(event[0] == "step" for event in watching.events) > 100
    assert threading.main_thread() not in watching.threads


def test_progress_can_cancel(trt, graphs, tmp_path):
    watching, timing = Watching(most=5), tmp_path / "timings" / "cache"
    with pytest.raises(UserError, match="cancelled"):
        engine_builder.build(graphs("small", "fp32") / "text.onnx", INPUTS["text"], Options(), timing, watching)
    assert sum(event[0] == "step" for event in watching.events) == 5
    assert timing.stat().st_size > 0  # what was timed until then is kept


def test_an_engine_is_not_lost_with_timings_that_cannot_be_written(trt, graphs, tmp_path):
    watching, timing = Watching(), tmp_path / "file" / "cache"
    timing.parent.touch()
    assert engine_builder.build(
        graphs("small", "fp32") / "text.onnx", INPUTS["text"], Options(), timing, watching
    ).nbytes
    assert any(f"{timing} cannot be written: " in line for line in watching.said)


INTERRUPTED = """
import argparse, sys
from sam3lab.export import engine_cli
parser = argparse.ArgumentParser()
engine_cli.add_arguments(parser)
try:
    engine_cli.run(parser.parse_args(sys.argv[1:]))
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_ctrl_c_ends_a_build(trt, graphs, tmp_path):
    import os

    command = [sys.executable, "-c", INTERRUPTED, "--onnx", str(graphs("small", "fp32"))]
    environment = os.environ | {"SAM3LAB_CACHE": str(tmp_path)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert (
        "text at 84" in process.stderr.readline() + process.stderr.readline()
    )  # the detector, the longest, comes next
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    assert process.wait(60) == 130
    assert time.monotonic() - began < 5
    process.stderr.close()
    assert list((tmp_path / "engines").iterdir()) == []


def test_progress_on_a_terminal_and_elsewhere(capsys, monkeypatch):
    def tell(progress):
        with progress:
            progress.start("Building", None, 2)
            progress.start("Timing", "Building", 3)
            assert progress.step("Timing")
            progress.finish("Timing")
            assert progress.step("Building")
            progress.cancel()
            assert not progress.step("Building")
            progress.finish("Building")

    tell(Progress("image", shown=False))
    assert capsys.readouterr().err == ""
    tell(Progress("image", shown=True))
    assert capsys.readouterr().err == "image: Building took 0.0 s (cancelled)\n"
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    tell(Progress("image", shown=True))
    assert "image: Building" in terminal.getvalue()


class Timings:
    def __init__(self, data, good=b"of this GPU"):
        self.data, self.good = data, good

    def queryKeys(self):  # noqa: N802 (TensorRT's name)
        return ["a kernel"] if self.data == self.good else []


class Config:
    """An IBuilderConfig as far as timing caches go; takes those of this GPU alone."""

    def create_timing_cache(self, data):
        return Timings(data)

    def set_timing_cache(self, timings, ignore_mismatch):
        assert ignore_mismatch is False
        if timings.data not in (b"", timings.good):
            return False
        self.timings = timings
        return True


def test_timings_of_this_gpu_count_and_others_do_not(tmp_path):
    path, config = tmp_path / "timings.cache", Config()
    assert not engine_builder.load_timings(config, path)
    assert config.timings.data == b""
    path.write_bytes(b"of this GPU")
    assert engine_builder.load_timings(config, path)
    assert config.timings.data == b"of this GPU"
    path.write_bytes(b"of another")
    assert not engine_builder.load_timings(config, path)
    assert config.timings.data == b""


def test_shapes_in_the_words_of_trtexec():
    parse = engine_profiles.parse
    assert parse(None, None, None, 84) == engine_profiles.PROFILES
    by_name = parse("pixels:1x3x84x84,ids:1x32", "pixels:2x3x84x84,ids:3x32,mask:3x32", "pixels:4x3x84x84,ids:8x32", 84)
    assert by_name == parse("images:1,prompts:1", "images:2,prompts:3", "images:4,prompts:8", 84)
    assert by_name == ({"images": (1, 2, 4), "prompts": (1, 3, 8), "pairs": (1, 1, 1)},)
    assert parse(None, "features_4x:2x32x24x24,image_index:5", None, 84) == (
        {"images": (2, 2, 2), "prompts": (1, 1, 1), "pairs": (5, 5, 5)},
    )


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ((None, "pixels:2x3x98x98", None), "pixels is Nx3x84x84 at resolution 84"),
        ((None, "pixels:2", None), "pixels is Nx3x84x84"),
        ((None, "text_features:2x31x32", None), "text_features is Nx32xC"),
        ((None, "images", None), "no shape: write pixels:4x3x84x84, or images:4"),
        ((None, "image:2", None), "names 'image'; the inputs are pixels"),
        ((None, "images:0", None), "least must be at least 1"),
        (("images:3", "images:2", None), "images cannot go from 3 to 2"),
        ((None, "images:3", "images:2"), "usual one between"),
        (("images:1", None, "images:2"), "need --optShapes"),
        ((None, "images:2", "prompts:2"), "says nothing of"),
        ((None, "pixels:2x3x84x84,features_1x:3x32x6x6", None), "both as 2 and as 3"),
    ],
)
def test_bad_shapes_are_refused_in_words(shapes, message):
    with pytest.raises(UserError, match=message):
        engine_profiles.parse(*shapes, 84)


def test_the_narrowest_profile_is_chosen():
    profiles = list(engine_profiles.PROFILES)
    assert engine_profiles.choose(profiles, {"images": 1}) == 0
    assert engine_profiles.choose(profiles, {"images": 1, "prompts": 2, "pairs": 2}) == 1
    with pytest.raises(
        UserError, match=r"1–16 pairs, not 1 images, 17 prompts, 17 pairs: give them less .*--maxShapes.*Artifacts"
    ):
        engine_profiles.choose(profiles, {"images": 1, "prompts": 17, "pairs": 17})


def command(*words):
    parser = argparse.ArgumentParser()
    engine_cli.add_arguments(parser)
    return engine_cli.run(parser.parse_args(words))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        # the article's own line
        (
            "--onnx=sam3-large.onnx --saveEngine=sam3.engine --fp16 --memPoolSize=workspace:2G --warmUpDuration=500",
            "--fp16: .*--precision fp16; --warmUpDuration: .*sam3lab measure --backend tensorrt",
        ),
        ("--checkpoint sam3-nano --int8", "INT8"),
        ("--loadEngine sam3.engine", "engines of the default options alone; those of others run from Python"),
        ("--checkpoint sam3-nano --workspace 2048", "replaced by --memPoolSize=workspace:SIZE"),
        ("--checkpoint sam3-nano --memPoolSize=dlaSRAM:1M", "only pool here is workspace"),
        ("--checkpoint sam3-nano --memPoolSize=2G", "write workspace:2G"),
        ("--checkpoint sam3-nano --memPoolSize=workspace:0M", "0 bytes"),
        ("--checkpoint sam3-nano --builderOptimizationLevel 6", "from 0 to 5, not 6"),
        ("--checkpoint sam3-nano --resolution 1024", "1024 is not a multiple of 14: try 1022"),
        ("--checkpoint sam3-nano --resolution 504,large", "write 504,1008,1512"),
        ("--checkpoint sam3-nano --optShapes images:2 --maxShapes images:1", "images cannot go"),
        ("", "either --onnx with a directory of graphs, or --checkpoint"),
        ("--checkpoint sam3-nano --onnx graphs", "either --onnx"),
        ("--onnx graphs --resolution 84", "graphs have their own"),
    ],
)
def test_bad_flags_are_refused_in_words(words, message):
    with pytest.raises(UserError, match=message):
        command(*words.split())


def test_pool_sizes():
    assert engine_cli.parse_pool("workspace:2G") == 2 * 2**30
    assert engine_cli.parse_pool("workspace:512") == 512 * 2**20
    assert engine_cli.parse_pool("workspace:1.5K") == 1536


def test_engines_of_other_options_are_said_to_be_the_users_own(engines, monkeypatch, capsys):
    monkeypatch.setattr(cache, "graphs", lambda *_: engines)
    monkeypatch.setattr(engine, "engines", lambda *_, **__: engines)
    command("--checkpoint", "sam3-nano")
    assert "run from Python" not in capsys.readouterr().out
    for option in ("--optShapes=images:2", "--memPoolSize=workspace:1G", "--builderOptimizationLevel=5"):
        command("--checkpoint", "sam3-nano", option)
        assert "engines of the default options alone; those of others run from Python" in capsys.readouterr().out


def test_the_command(trt, graphs, tmp_path, monkeypatch, capsys):
    source, target, timings = graphs("small", "fp32"), tmp_path / "sam3.engine", tmp_path / "timings"
    monkeypatch.setenv("SAM3LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sam3lab.nvml.gpu", lambda: None)
    words = f"--onnx={source} --saveEngine={target} --memPoolSize=workspace:64M --timingCacheFile={timings}"
    assert command(*words.split(), "--optShapes=images:1", "--maxShapes=images:2") == 0
    out = capsys.readouterr().out
    assert "fp32 at 84², TensorRT" in out and "built without a GPU" in out
    found = manifest.verify(target)
    assert found["options"]["workspace"] == 64 * 2**20
    assert found["options"]["profiles"] == [{"images": [1, 1, 2], "prompts": [1, 1, 1], "pairs": [1, 1, 1]}]
    assert timings.exists()
    with pytest.raises(UserError, match="holds engines already"):
        command("--onnx", str(target), "--precision", "fp32")
    with pytest.raises(UserError, match=r"is one graph of three: give their directory"):
        command("--onnx", str(source / "image.onnx"))
    assert json.loads((target / manifest.NAME).read_text())["gpu"] == engine.NO_GPU
