"""INT8 graphs: both runtimes take them, they compute nearly the same, and they are made alike every time."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from sam3lab import images
from sam3lab.errors import UserError
from sam3lab.export import cache, calibration, manifest, quantize
from sam3lab.export.onnx import INPUTS, OUTPUTS
from sam3lab.export.quantize import Sample
from sam3lab.paths import DATA

SIDE = 98


def make_samples(count=4, seed=0, side=SIDE):
    random = np.random.default_rng(seed)
    mask = np.arange(32) < np.array([[4], [13]])
    return [
        Sample(
            # photographs vary slowly, noise does not
            np.repeat(np.repeat(random.integers(0, 256, (1, 3, side // 7, side // 7), dtype=np.uint8), 7, 2), 7, 3),
            random.integers(0, 60, (2, 32)),
            mask,
            np.zeros(2, dtype=np.int64),
            np.arange(2),
        )
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def source(small_checkpoint):
    return cache.graphs(small_checkpoint, SIDE, "fp32")


@pytest.fixture(scope="module")
def quantised(small_checkpoint):
    return quantize.graphs(small_checkpoint, SIDE, make_samples())


def onnxruntime_session(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda feed: session.run(None, feed)


def openvino_session(path):
    openvino = pytest.importorskip("openvino")
    model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda feed: list(model(feed).values())


def run(directory, make_session, inputs):
    """All outputs of all stages, by name."""
    values = dict(inputs)
    for stage in ("image", "text", "detect"):
        outputs = make_session(directory / f"{stage}.onnx")({name: values[name] for name in INPUTS[stage]})
        values |= dict(zip(OUTPUTS[stage], map(np.array, outputs), strict=True))
    return {name: value for name, value in values.items() if name not in inputs}


def inputs():
    """Other images than the calibration's, and another number of them, of prompts and of pairs."""
    pixels = np.concatenate([sample.pixels for sample in make_samples(2, seed=9)])
    mask = np.arange(32) < np.array([[3], [20], [9]])
    ids = np.random.default_rng(9).integers(0, 60, (3, 32))
    index = np.array([0, 0, 1, 1]), np.array([0, 2, 1, 0])
    return dict(zip(("pixels", "ids", "mask", "image_index", "text_index"), (pixels, ids, mask, *index), strict=True))


@pytest.mark.parametrize("make_session", [onnxruntime_session, openvino_session])
def test_both_runtimes_compute_nearly_what_float_graphs_do(source, quantised, make_session):
    expected, found = run(source, onnxruntime_session, inputs()), run(quantised, make_session, inputs())
    assert found.keys() == expected.keys()
    for name, reference in expected.items():
        a, b = reference.ravel().astype(np.float64), found[name].ravel().astype(np.float64)
        assert reference.shape == found[name].shape and reference.dtype == found[name].dtype
        assert a @ b / np.sqrt((a @ a) * (b @ b)) >= 0.99, name
    assert np.abs(found["boxes"] - expected["boxes"]).max() <= 0.05
    assert any((found[name] != expected[name]).any() for name in OUTPUTS["image"])


def tensors(path):
    return {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}


@pytest.mark.parametrize("stage", INPUTS)
def test_large_weights_are_stored_in_8_bits(source, quantised, stage):
    def bytes_of(directory, least):
        return sum(len(t.raw_data) for t in tensors(directory / f"{stage}.onnx").values() if np.prod(t.dims) >= least)

    stored = tensors(quantised / f"{stage}.onnx").values()
    small = sum(len(t.raw_data) for t in stored if t.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8))
    assert small > 5_000
    assert bytes_of(quantised, 500) < 0.6 * bytes_of(source, 500)


def test_names_types_and_axes_stay(source, quantised):
    for stage in INPUTS:
        before, after = (onnx.load(directory / f"{stage}.onnx").graph for directory in (source, quantised))
        assert [value.SerializeToString() for value in before.input] == [v.SerializeToString() for v in after.input]
        assert [value.name for value in before.output] == [value.name for value in after.output]
        kinds = [value.type.tensor_type.elem_type for value in after.output]
        assert kinds == [value.type.tensor_type.elem_type for value in before.output]


def test_what_stays_float(quantised):
    graph = onnx.load(quantised / "detect.onnx").graph
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    biases = {tensor.name for tensor in graph.initializer if tensor.name.endswith("bias")}
    layer = {
        n: bias for node in graph.node if node.op_type == "Add" for n in node.input for bias in biases & {*node.input}
    }
    # layer: whether its input and its weight are rounded
    products = {
        layer[node.output[0]]: [made_by.get(name) == "DequantizeLinear" for name in node.input]
        for node in graph.node
        if node.op_type == "MatMul" and node.output[0] in layer
    }

    def found(beginning):
        ways = [way for name, way in products.items() if name.startswith(beginning)]
        assert ways
        return ways

    for boxes in ("decoder.ref_point_head", "decoder.box_head", "decoder.box_rpb_embed"):
        assert all(way == [False, False] for way in found(boxes)), boxes
    for heads in ("decoder.presence_head", "decoder.layers.0.mlp", "scoring.query_proj", "mask_decoder.mask_embedder"):
        assert all(way == [False, True] for way in found(heads)), heads
    for image_tokens in ("encoder.", "decoder.layers.1.vision_cross_attn.v_proj"):
        assert all(way == [True, True] for way in found(image_tokens)), image_tokens
    for node in graph.node:
        if node.op_type in ("Attention", "LayerNormalization", "Sigmoid", "Softmax"):
            assert all(made_by.get(name) != "DequantizeLinear" for name in node.input)


def test_weights_alone_come_back_within_half_a_step(source, quantised):
    before, after = tensors(source / "text.onnx"), tensors(quantised / "text.onnx")
    table = onnx.numpy_helper.to_array(before["token_embedding.weight"])
    stored, scale = (onnx.numpy_helper.to_array(after[f"token_embedding.weight_{part}"]) for part in ("int8", "scale"))
    assert stored.dtype == np.int8 and scale.shape == (table.shape[1],)
    assert (np.abs(stored * scale - table) <= scale * 0.5001).all()
    assert "token_embedding.weight" not in after


def test_made_alike_every_time(source, quantised, tmp_path):
    again = quantize.quantize(source, tmp_path, make_samples())
    assert again == manifest.verify(quantised)
    for name in again["files"]:
        assert (tmp_path / name).read_bytes() == (quantised / name).read_bytes()


def test_the_manifest_says_what_it_is(source, quantised):
    facts, origin = manifest.verify(quantised), manifest.verify(source)
    assert facts["precision"] == "int8" and facts["samples"] == 4
    assert facts["calibration"] == quantize.digest(make_samples())
    assert {key: facts[key] for key in ("checkpoint", "resolution", "opset", "inputs")} == {
        key: origin[key] for key in ("checkpoint", "resolution", "opset", "inputs")
    }


def test_a_second_time_is_a_lookup_and_other_samples_are_not(small_checkpoint, quantised, monkeypatch, tmp_path):
    def fail(*_):
        raise AssertionError("quantised again")

    monkeypatch.setattr(quantize, "quantize", fail)
    assert quantize.graphs(small_checkpoint, SIDE, iter(make_samples())) == quantised
    with pytest.raises(AssertionError, match="quantised again"):
        quantize.graphs(small_checkpoint, SIDE, make_samples(seed=1))
    with pytest.raises(AssertionError, match="quantised again"):
        quantize.graphs(small_checkpoint, SIDE, make_samples()[::-1])
    monkeypatch.setattr(quantize, "cache_dir", lambda kind: tmp_path)
    with pytest.raises(AssertionError, match="quantised again"):
        quantize.graphs(small_checkpoint, SIDE, make_samples())
    assert not list(tmp_path.iterdir())  # nothing half-made is left


def test_weights_beside_the_graph(source, quantised, tmp_path):
    large, small = tmp_path / "fp32", tmp_path / "int8"
    large.mkdir()
    small.mkdir()
    for stage in INPUTS:
        model = onnx.load(source / f"{stage}.onnx")
        onnx.save(model, large / f"{stage}.onnx", save_as_external_data=True, location=f"{stage}.onnx.data")
    manifest.write(large, {k: v for k, v in manifest.verify(source).items() if k not in ("format", "files")})
    facts = quantize.quantize(large, small, make_samples())
    assert [name for name in facts["files"] if name.endswith(".data")]
    manifest.verify(small)
    expected, found = (run(where, onnxruntime_session, inputs()) for where in (quantised, small))
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-3)


def test_what_cannot_be_quantised_is_refused(small_checkpoint, source, tmp_path):
    with pytest.raises(UserError, match="nothing to calibrate on"):
        quantize.quantize(source, tmp_path, [])
    with pytest.raises(UserError, match=r"\[1, 3, 84, 84\], the graphs take \[B, 3, 98, 98\]"):
        quantize.quantize(source, tmp_path, make_samples(side=84))
    with pytest.raises(UserError, match="int8 graphs: quantise the fp32 ones"):
        quantize.quantize(quantize.graphs(small_checkpoint, SIDE, make_samples()), tmp_path, make_samples())
    assert not list(tmp_path.iterdir())


def test_a_sample_is_what_the_stages_take():
    from sam3lab.model.tokenizer import load_tokenizer

    tokenizer = load_tokenizer("no-such-checkpoint")  # CLIP's own
    photograph = images.load("cell")
    found = quantize.sample(photograph, ["cat", "a red car"], tokenizer, 84)
    np.testing.assert_array_equal(found.pixels[0], images.pixels(photograph, 84))
    np.testing.assert_array_equal(found.ids, tokenizer.encode(["cat", "a red car"])[0])
    assert (found.image_index.tolist(), found.text_index.tolist()) == ([0, 0], [0, 1])


def test_calibration_is_on_training_scenes_with_their_own_prompts():
    checkpoint = DATA / "checkpoints" / "sam3-nano"
    found = calibration.samples(checkpoint, SIDE, count=9)
    assert len(found) == 9 and quantize.digest(found) == quantize.digest(calibration.samples(checkpoint, SIDE, 9))
    assert {each.pixels.shape for each in found} == {(1, 3, SIDE, SIDE)}
    assert all(each.mask.sum() > 2 * len(each.ids) for each in found)
    assert len({each.pixels.tobytes() for each in found}) == 9


def test_nothing_is_written_beside_the_graphs_that_are_read(source, tmp_path, monkeypatch):
    """Two processes quantise the same graphs at a time, for two runtimes."""
    import onnxruntime.quantization

    own, read = onnxruntime.quantization.quantize_static, []

    def watched(model_input, *arguments, **options):
        read.append(Path(model_input).parent)
        return own(model_input, *arguments, **options)

    monkeypatch.setattr(onnxruntime.quantization, "quantize_static", watched)
    quantize.quantize(source, tmp_path, make_samples()[:1])
    assert read and source not in read
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
