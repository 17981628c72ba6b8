"""Edits of an ONNX graph with QuantizeLinear and DequantizeLinear nodes, for what the quantiser does not offer."""

import numpy as np


def place(node) -> int:
    """Which input of a node is its weight."""
    return 0 if node.op_type == "Gather" else 1


def round_for(graph, names: set[str]) -> None:
    """Let only these nodes read what was rounded for them; the quantiser gives it to all readers of the same value. What
    a convolution gives is rounded for all: the rounding is part of its integer kernel."""
    made_by = {value: node for node in graph.node for value in node.output}

    def maker(value: str, kind: str):
        node = made_by.get(value)
        return node if node is not None and node.op_type == kind else None

    for node in graph.node:
        if node.name in names or node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        for index, value in enumerate(node.input):
            back = maker(value, "DequantizeLinear")
            there = back and maker(back.input[0], "QuantizeLinear")
            if there and not maker(there.input[0], "Conv"):
                node.input[index] = there.input[0]


def weights_alone(graph, names: set[str]) -> None:
    """Store the weights of these nodes in 8 bits, one scale an output channel, and turn them to float where they are used.

    No other node may read them.
    """
    from onnx import TensorProto, helper, numpy_helper

    tensors = {tensor.name: tensor for tensor in graph.initializer}
    nodes, done = [], set()
    for node in graph.node:
        nodes.append(node)
        tensor = tensors.get(node.input[place(node)]) if node.name in names else None
        if tensor is None or tensor.data_type != TensorProto.FLOAT:
            continue
        axis, stored = _channels(node), [f"{tensor.name}_{part}" for part in ("int8", "scale", "zero_point")]
        if tensor.name not in done:
            done.add(tensor.name)
            graph.initializer.remove(tensor)
            parts = _rounded(numpy_helper.to_array(tensor), axis)
            graph.initializer.extend(map(numpy_helper.from_array, parts, stored))
        result = f"{node.name}_float"
        if node.op_type == "Gather":  # the rows that are looked up, not the table
            axis, result, node.output[0] = -1, node.output[0], result
            node.input[0], stored[0] = stored[0], node.output[0]
        else:
            node.input[place(node)] = result
        to_float = helper.make_node("DequantizeLinear", stored, [result], f"{node.name}_dequantize", axis=axis)
        nodes.insert(len(nodes) if node.op_type == "Gather" else -1, to_float)
    del graph.node[:]
    graph.node.extend(nodes)


def _rounded(weight: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A weight as int8 with the scale and zero point (0) of each of its slices along an axis."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scale = np.maximum(np.abs(weight).max(axis=others, keepdims=True), np.finfo(np.float32).tiny) / 127
    # ONNX Runtime, asked for U8U8 products, takes an absent zero point for a scalar one, and fails
    return np.rint(weight / scale).astype(np.int8), scale.ravel(), np.zeros(scale.size, dtype=np.int8)


def _channels(node) -> int:
    """The axis of a weight along which its output channels, or an embedding's, lie."""
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return 0 if node.op_type == "Gemm" and transposed else 1
