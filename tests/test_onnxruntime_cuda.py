"""The graphs for ONNX Runtime's CUDA provider: the same values as the model's, from fused operators. Run on its CPU
provider, which has most of those operators too."""

import re
from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx.helper import make_node

from sam3lab.backends.onnxruntime_cuda import DISABLED, image_by_image
from sam3lab.errors import UserError
from sam3lab.export import cache, fused_products, manifest
from sam3lab.export.onnx import ORT_CUDA, export, inputs
from sam3lab.export.onnxruntime_cuda import WIDEST, group
from sam3lab.model.checkpoint import load_model
from tests.cuda_operators import in_standard_operators

RESOLUTION = 98  # 7 patches, which windows of 3 do not divide
ort = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def graphs(small_checkpoint):
    directory = cache.graphs(small_checkpoint, RESOLUTION, "fp32", target=ORT_CUDA)
    assert manifest.verify(directory)["target"] == ORT_CUDA
    return directory


def operators(path):
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def feeds(model):
    random = torch.Generator().manual_seed(0)
    ids, mask = torch.randint(0, 60, (3, 32), generator=random), torch.ones(3, 32, dtype=torch.bool)
    mask[0, 4:] = False
    pixels = torch.randint(0, 256, (2, 3, RESOLUTION, RESOLUTION), dtype=torch.uint8, generator=random)
    with torch.no_grad():
        maps, text = model.image_encoder(pixels), model.text_encoder(ids, mask)
        found = model.detector(*maps, text, mask, torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([2, 1, 0, 0, 1, 1]))
        alone = model.detector(*(map[1:] for map in maps), text, mask, torch.tensor([0, 0]), torch.tensor([1, 2]))
    maps = [map.permute(0, 2, 3, 1).contiguous() for map in maps]
    one = [map[1:] for map in maps]
    return [
        ("image", (pixels,), maps),
        ("text", (ids, mask), (text,)),
        ("detect", (*maps, text, mask, torch.tensor([[2, 1, 0], [0, 1, 1]])), found),
        ("detect", (*one, text, mask, torch.tensor([[1, 2]])), alone),
    ]


def test_every_stage_computes_what_the_model_does(graphs, small_checkpoint):
    for stage, values, expected in feeds(load_model(small_checkpoint, RESOLUTION)):
        session = ort.InferenceSession(
            in_standard_operators(graphs / f"{stage}.onnx"),
            providers=["CPUExecutionProvider"],
            disabled_optimizers=DISABLED,
        )
        feed = {name: tensor.numpy() for name, tensor in zip(inputs(ORT_CUDA)[stage], values, strict=True)}
        for one, other in zip(session.run(None, feed), expected, strict=True):
            assert np.linalg.norm(one - other.numpy()) <= 1e-5 * np.linalg.norm(other), stage


def test_attention_turns_and_norms_are_single_operators(graphs):
    image, text, detect = (operators(graphs / f"{stage}.onnx") for stage in ("image", "text", "detect"))
    # four ViT layers: one attention each, queries and keys turned, nothing taken apart, all norms but the first two fused
    assert (image["MultiHeadAttention"], image["RotaryEmbedding"], image["Split"]) == (4, 8, 0)
    assert (image["SkipLayerNormalization"], image["LayerNormalization"]) == (7, 2)
    # two layers of two norms and a last one, of which the first has no sum before it
    assert (text["MultiHeadAttention"], text["SkipLayerNormalization"], text["LayerNormalization"]) == (2, 4, 1)
    # two encoder layers with two attentions, two decoder layers with three, and the mask decoder's
    assert (detect["MultiHeadAttention"], detect["Attention"]) == (11, 0)
    assert (detect["SkipGroupNorm"], detect["GroupNormalization"], detect["InstanceNormalization"]) == (2, 0, 0)


def test_the_detector_reorders_no_maps_and_adds_no_bias_that_it_can_do_without(graphs):
    graph = onnx.load(graphs / "detect.onnx").graph
    kinds = Counter(node.op_type for node in graph.node)
    # maps stay in the order that convolutions take; upsampling is part of the sum
    assert (kinds["NhwcConv"], kinds["Conv"], kinds["Resize"]) == (2, 0, 0)
    # of images nothing is selected, only of prompts
    assert {node.input[0] for node in graph.node if node.op_type == "Gather"} & {
        value.name for value in graph.input
    } == {"text_features", "mask"}
    # ReLU after the two norms and, in the two decoder layers, in the network of the box bias, which has no addition
    assert kinds["Relu"] == 4
    # two encoder layers, two decoder layers and the mask decoder have keys and values of the text: one product of all
    text = next(node.output[0] for node in graph.node if node.op_type == "Gather" and node.input[0] == "text_features")
    readers = [node for node in graph.node if text in node.input and node.op_type == "MatMul"]
    splits = [node for node in graph.node if node.op_type == "Split" and node.input[0] == readers[0].output[0]]
    assert [len(node.output) for node in splits] == [2 * 5]
    assert len(readers) == 2  # the other is of the class scores
    biases = {initializer.name for initializer in graph.initializer if initializer.name.endswith(".bias")}
    added = {name for node in graph.node for name in node.input if name in biases}
    assert not any(re.search(r"\.(k|v|kv)_proj\.", name) for name in added)


def test_the_bias_of_the_values_is_in_the_output_projection(graphs, small_checkpoint):
    width = 32
    added = [
        tensor for tensor in onnx.load(graphs / "image.onnx").graph.initializer if list(tensor.dims) == [3 * width]
    ]
    assert not added


def test_products_of_one_value_are_merged_where_they_are_split_alike():
    random = np.random.default_rng(0)
    weights = {
        name: random.standard_normal((4, width), np.float32) for name, width in (("a", 6), ("b", 6), ("c", 9), ("d", 6))
    }
    nodes = [
        make_node("MatMul", [source, name], [f"{name}_all"])
        for name, source in (("a", "x"), ("b", "x"), ("c", "x"), ("d", "y"))
    ]
    parts = {name: [f"{name}{i}" for i in range(3 if name == "c" else 2)] for name in weights}
    nodes += [make_node("Split", [f"{name}_all"], parts[name], axis=-1, num_outputs=len(parts[name])) for name in parts]
    nodes += [make_node("Neg", [part], [f"-{part}"]) for each in parts.values() for part in each]
    tensor = onnx.helper.make_tensor_value_info
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            nodes,
            "products",
            [tensor(name, onnx.TensorProto.FLOAT, [2, 3, 4]) for name in ("x", "y")],
            [tensor(f"-{part}", onnx.TensorProto.FLOAT, [2, 3, 3]) for each in parts.values() for part in each],
            [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 23)],
        ir_version=10,
    )
    merged = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    fused_products.merge(merged)
    merged = ir.to_proto(merged)
    assert Counter(node.op_type for node in merged.graph.node) == {"MatMul": 3, "Split": 3, "Neg": 9}
    assert {tuple(each.dims) for each in merged.graph.initializer} == {(4, 12), (4, 9), (4, 6)}
    feed = {name: random.standard_normal((2, 3, 4), np.float32) for name in ("x", "y")}
    one, other = (
        ort.InferenceSession(each.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feed)
        for each in (model, merged)
    )
    assert len(one) == 9
    for before, after in zip(one, other, strict=True):
        np.testing.assert_allclose(before, after, atol=1e-6)


@pytest.mark.parametrize(
    ("image_index", "images", "so"),
    [
        ([0], 1, True),
        ([0, 0, 0], 1, True),
        ([0, 1], 2, True),
        ([0, 0, 1, 1], 2, True),
        ([1, 0], 2, False),
        ([0, 1, 0, 1], 2, False),
        ([0, 0, 1], 2, False),
        ([1], 2, False),
        ([0, 1], 3, False),
        ([1, 1], 1, False),  # to be refused where it is copied
    ],
)
def test_pairs_that_go_image_by_image_need_no_copies(image_index, images, so):
    assert image_by_image(np.array(image_index), images) is so


@pytest.mark.parametrize(("width", "heads", "wide"), [(1024, 16, 1024), (1280, 16, 640), (192, 4, 192), (32, 2, 32)])
def test_rotary_heads_are_as_wide_as_a_block_allows(width, heads, wide):
    assert group(width, heads) == wide <= WIDEST
    assert wide % (width // heads) == 0 and width % wide == 0


def test_an_unknown_target_is_refused(small_checkpoint, tmp_path):
    with pytest.raises(UserError, match="cannot be made for 'tpu': portable or onnxruntime-cuda"):
        export(small_checkpoint, tmp_path, RESOLUTION, target="tpu")
