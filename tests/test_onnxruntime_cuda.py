"""The graphs for ONNX Runtime's CUDA provider: the same values as the model's, from fused operators. Run on its CPU
provider, which has most of those operators too."""

from collections import Counter

import numpy as np
import onnx
import pytest
import torch

from sam3lab.backends.onnxruntime_cuda import DISABLED
from sam3lab.errors import UserError
from sam3lab.export.onnx import INPUTS, ORT_CUDA, export
from sam3lab.export.onnxruntime_cuda import WIDEST, group
from sam3lab.model.checkpoint import load_model

RESOLUTION = 98  # 7 patches, which windows of 3 do not divide
ort = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def graphs(small_checkpoint, tmp_path_factory):
    directory = tmp_path_factory.mktemp("graphs")
    manifest = export(small_checkpoint, directory, RESOLUTION, target=ORT_CUDA)
    assert manifest["target"] == ORT_CUDA
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
        pairs = torch.tensor([0, 0, 1]), torch.tensor([2, 1, 0])
        found = model.detector(*maps, text, mask, *pairs)
    return {"image": ((pixels,), maps), "text": ((ids, mask), (text,)), "detect": ((*maps, text, mask, *pairs), found)}


def with_group_norm(path):
    """The graph with com.microsoft.GroupNorm, which only the CUDA provider has, as a function of standard operators."""
    model = onnx.load(path)
    for node in model.graph.node:
        if node.op_type == "GroupNorm":
            node.domain = "test"
    model.opset_import.append(onnx.helper.make_opsetid("test", 1))
    nodes = [
        onnx.helper.make_node("Transpose", ["x"], ["first"], perm=[0, 3, 1, 2]),
        onnx.helper.make_node("GroupNormalization", ["first", "scale", "shift"], ["normed"]),
        onnx.helper.make_node("Transpose", ["normed"], ["y"], perm=[0, 2, 3, 1]),
    ]
    for ours, theirs, kind in (
        ("num_groups", "groups", onnx.AttributeProto.INT),
        ("epsilon",) * 2 + (onnx.AttributeProto.FLOAT,),
    ):
        nodes[1].attribute.append(onnx.AttributeProto(name=ours, ref_attr_name=theirs, type=kind))
    model.functions.append(
        onnx.helper.make_function(
            "test",
            "GroupNorm",
            ["x", "scale", "shift"],
            ["y"],
            nodes,
            [onnx.helper.make_opsetid("", 23)],
            ["groups", "epsilon", "activation", "channels_last"],
        )
    )
    return model.SerializeToString()


def test_every_stage_computes_what_the_model_does(graphs, small_checkpoint):
    for stage, (inputs, expected) in feeds(load_model(small_checkpoint, RESOLUTION)).items():
        session = ort.InferenceSession(
            with_group_norm(graphs / f"{stage}.onnx"), providers=["CPUExecutionProvider"], disabled_optimizers=DISABLED
        )
        feed = {name: tensor.numpy() for name, tensor in zip(INPUTS[stage], inputs, strict=True)}
        for one, other in zip(session.run(None, feed), expected, strict=True):
            assert np.linalg.norm(one - other.numpy()) <= 1e-5 * np.linalg.norm(other), stage


def test_attention_turns_and_norms_are_single_operators(graphs):
    image, text, detect = (operators(graphs / f"{stage}.onnx") for stage in ("image", "text", "detect"))
    # four ViT layers: one attention each, queries and keys turned together, and all norms but the first two fused
    assert (image["MultiHeadAttention"], image["RotaryEmbedding"], image["Softmax"]) == (4, 4, 0)
    assert (image["SkipLayerNormalization"], image["LayerNormalization"]) == (7, 2)
    # two layers of two norms and a last one, of which the first has no sum before it
    assert (text["MultiHeadAttention"], text["SkipLayerNormalization"], text["LayerNormalization"]) == (2, 4, 1)
    # two encoder layers with two attentions, two decoder layers with three, and the mask decoder's
    assert (detect["MultiHeadAttention"], detect["Attention"]) == (11, 0)
    assert (detect["GroupNorm"], detect["GroupNormalization"], detect["InstanceNormalization"]) == (2, 0, 0)


def test_the_bias_of_the_values_is_in_the_output_projection(graphs, small_checkpoint):
    width = 32
    added = [
        tensor for tensor in onnx.load(graphs / "image.onnx").graph.initializer if list(tensor.dims) == [3 * width]
    ]
    assert not added


@pytest.mark.parametrize(("width", "heads", "wide"), [(1024, 16, 1024), (1280, 16, 640), (192, 4, 192), (32, 2, 32)])
def test_rotary_heads_are_as_wide_as_a_block_allows(width, heads, wide):
    assert group(width, heads) == wide <= WIDEST
    assert wide % (width // heads) == 0 and width % wide == 0


def test_an_unknown_target_is_refused(small_checkpoint, tmp_path):
    with pytest.raises(UserError, match="cannot be made for 'tpu': portable or onnxruntime-cuda"):
        export(small_checkpoint, tmp_path, RESOLUTION, target="tpu")
