"""Layer norms as ONNX Runtime's own operators, which its optimiser leaves apart, and its CUDA provider has kernels for."""

import onnx_ir as ir


def fuse(model: ir.Model) -> None:
    """Residual sums and the layer norms that follow them as com.microsoft.SkipLayerNormalization.

    ONNX Runtime's own fusion leaves out sums that are read again, which in pre-norm transformers is all of them. Here it is
    every Add of two values of one shape and the LayerNormalization over the last axis that reads it, with a bias that was
    added to one of the two before.
    """
    for norm in list(model.graph):
        total = norm.inputs[0] if norm.op_type == "LayerNormalization" else None
        add = total.producer() if total is not None else None
        if add is None or add.op_type != "Add" or total.is_graph_output() or not _last_axis(norm, total):
            continue
        a, b = add.inputs
        if a.shape is None or a.shape != b.shape:
            continue
        (a, bias), (b, other) = _without_bias(a), _without_bias(b)
        if other is not None:
            (a, b), bias = ((b, a), other) if bias is None else ((a, add.inputs[1]), bias)
        inputs = [a, b, norm.inputs[1], norm.inputs[2], *([] if bias is None else [bias])]
        epsilon = norm.attributes.get_float("epsilon", 1e-5)
        node = ir.Node(
            "com.microsoft",
            "SkipLayerNormalization",
            inputs,
            [ir.AttrFloat32("epsilon", epsilon)],
            num_outputs=4,
        )
        for old, new in ((norm.outputs[0], node.outputs[0]), (total, node.outputs[3])):
            new.name, new.type, new.shape = f"{old.name}_fused", old.type, old.shape
        for unwritten in node.outputs[1:3]:
            unwritten.name = ""
        model.graph.insert_before(add, node)
        ir.convenience.replace_all_uses_with([norm.outputs[0], total], [node.outputs[0], node.outputs[3]])
        model.graph.remove([norm, add], safe=True)
    for node in reversed(list(model.graph)):  # the additions of biases that nothing reads now
        if node.op_type == "Add" and not any(output.uses() or output.is_graph_output() for output in node.outputs):
            model.graph.remove(node, safe=True)
    model.opset_imports["com.microsoft"] = 1


def _last_axis(norm: ir.Node, value: ir.Value) -> bool:
    return norm.attributes.get_int("axis", -1) in (-1, len(value.shape or ()) - 1)


def _without_bias(value: ir.Value) -> tuple[ir.Value, ir.Value | None]:
    """What a bias was added to, and the bias, where that is all that the value is and nothing else reads it."""
    add = value.producer()
    if add is None or add.op_type != "Add" or len(value.uses()) > 1 or value.is_graph_output():
        return value, None
    for x, bias in (tuple(add.inputs), tuple(reversed(add.inputs))):
        if bias.is_initializer() and len(bias.shape) == 1:
            return x, bias
    return value, None
