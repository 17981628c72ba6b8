"""Products of one value with several weights as one product."""

from collections import defaultdict

import numpy as np
import onnx_ir as ir

OUTPUTS = 32  # of a Split that ONNX Runtime's CUDA provider starts without copying their addresses to the device first


def merge(model: ir.Model) -> None:
    """Products that share their first input and are split into equal parts become one, split into all of these parts.

    In the detector these are the keys and values of the text, of which every layer makes its own.
    """
    groups = defaultdict(list)
    for node in model.graph:
        if (split := _split(node)) is not None:
            shape = tuple(node.inputs[1].const_value.shape)
            groups[node.inputs[0], shape, len(split.outputs)].append((node, split))
    for (value, _, parts), found in groups.items():
        for start in range(0, len(found), OUTPUTS // parts):
            _merge(model.graph, value, found[start : start + OUTPUTS // parts])


def _split(node: ir.Node) -> ir.Node | None:
    """The Split into equal parts along the last axis that alone reads a product with constant weights."""
    if node.op_type != "MatMul" or node.inputs[1].const_value is None or len(node.inputs[1].shape) != 2:
        return None
    uses = node.outputs[0].uses()
    split = uses[0].node if len(uses) == 1 else None
    if split is None or split.op_type != "Split" or len(split.inputs) > 1 or node.outputs[0].shape is None:
        return None
    if any(output.is_graph_output() for output in split.outputs):
        return None
    last = split.attributes.get_int("axis", 0) in (-1, len(node.outputs[0].shape) - 1)
    return split if last and int(node.inputs[1].shape[1]) % len(split.outputs) == 0 else None


def _merge(graph: ir.Graph, value: ir.Value, found: list[tuple[ir.Node, ir.Node]]) -> None:
    if len(found) < 2:
        return
    weights = np.concatenate([product.inputs[1].const_value.numpy() for product, _ in found], axis=1)
    first, old = found[0][0], [output for _, split in found for output in split.outputs]
    tensor = ir.tensor(weights, name=f"{first.outputs[0].name}_merged_weights")
    initializer = ir.Value(name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.initializers.add(initializer)
    product = ir.Node("", "MatMul", [value, initializer])
    product.outputs[0].name, product.outputs[0].type = f"{first.outputs[0].name}_merged", old[0].type
    product.outputs[0].shape = ir.Shape([*value.shape[:-1], weights.shape[1]])
    axis = ir.AttrInt64("axis", len(value.shape) - 1)
    split = ir.Node("", "Split", product.outputs, [axis, ir.AttrInt64("num_outputs", len(old))], num_outputs=len(old))
    graph.insert_before(first, [product, split])
    for before, after in zip(old, split.outputs, strict=True):
        after.name, after.type, after.shape = f"{before.name}_merged", before.type, before.shape
    ir.convenience.replace_all_uses_with(old, split.outputs)
    for pair in found:
        unread = pair[0].inputs[1]
        graph.remove(reversed(pair), safe=True)
        if not unread.uses():
            graph.initializers.pop(unread.name)
