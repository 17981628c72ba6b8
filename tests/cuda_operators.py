"""Graphs for ONNX Runtime's CUDA provider, so that its CPU provider runs them."""

import onnx
from onnx.helper import make_node

STANDARD = {  # what operators that only the CUDA provider has compute, in terms of others
    "NhwcConv": (
        ["x", "w"],
        [
            make_node("Transpose", ["x"], ["first"], perm=[0, 3, 1, 2]),
            make_node("Transpose", ["w"], ["weights"], perm=[0, 3, 1, 2]),
            (make_node("Conv", ["first", "weights"], ["mapped"]), {"kernel_shape": "kernel_shape", "pads": "pads"}),
            make_node("Transpose", ["mapped"], ["y"], perm=[0, 2, 3, 1]),
        ],
        ["kernel_shape", "pads"],
    ),
    "SkipGroupNorm": (
        ["x", "scale", "shift", "skip"],
        [
            make_node("Add", ["x", "skip"], ["sum"]),
            make_node("Transpose", ["sum"], ["first"], perm=[0, 3, 1, 2]),
            (
                make_node("GroupNormalization", ["first", "scale", "shift"], ["normed"]),
                {"num_groups": "groups", "epsilon": "epsilon"},
            ),
            make_node("Transpose", ["normed"], ["y"], perm=[0, 2, 3, 1]),
        ],
        ["groups", "epsilon", "activation", "channels_last"],
    ),
}
KINDS = {"groups": "INT", "epsilon": "FLOAT", "kernel_shape": "INTS", "pads": "INTS"}


def in_standard_operators(path):
    """The graph with the operators of STANDARD as functions."""
    model = onnx.load(path)
    for node in model.graph.node:
        if node.op_type in STANDARD:
            node.domain = "test"
    model.opset_import.append(onnx.helper.make_opsetid("test", 1))
    for name, (names, parts, attributes) in STANDARD.items():
        nodes = []
        for part in parts:
            node, passed = part if isinstance(part, tuple) else (part, {})
            nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
            for inner, outer in passed.items():
                kind = getattr(onnx.AttributeProto, KINDS[outer])
                nodes[-1].attribute.append(onnx.AttributeProto(name=inner, ref_attr_name=outer, type=kind))
        imports = [onnx.helper.make_opsetid("", 23)]
        function = onnx.helper.make_function("test", name, names, ["y"], nodes, imports, attributes)
        model.functions.append(function)
    return model.SerializeToString()
