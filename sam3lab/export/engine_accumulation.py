"""Float16 matrix products whose sums are kept in float32, said as TensorRT has it.

TensorRT chooses by speed whether it sums float16 products in float16 or float32, and has no option for it. Where both
factors are cast to float32 and the product is cast back, it takes one kernel with float16 factors and float32 sums
(TensorRT's documentation, Precision Control); the casts are no work, and the weights stay float16. PyTorch and ONNX
Runtime sum in float32 unasked. Sums in float16 are what public TensorRT engines of this model fail on: no value comes
near float16's limit, but rounding adds up over the layers, until the features have a cosine of 0.06 to 0.09 with the
right ones (as the authors of mkturkcan/DART report, in sam3/trt/FP16_DEBUG_REPORT.md).
"""

from pathlib import Path

_PRODUCTS = ("MatMul", "Gemm")


def in_float32(path: Path) -> bytes:
    """An ONNX file whose matrix products are all float16, serialised with each of them between casts."""
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load(path)
    nodes, wide = [], {}
    for node in model.graph.node:
        if node.op_type not in _PRODUCTS:
            nodes.append(node)
            continue
        for place, value in enumerate(node.input):
            if value not in wide:
                wide[value] = f"{value}_float32"
                nodes.append(helper.make_node("Cast", [value], [wide[value]], f"{value}_widen", to=TensorProto.FLOAT))
            node.input[place] = wide[value]
        result, node.output[0] = node.output[0], f"{node.output[0]}_sum"
        narrow = helper.make_node("Cast", [node.output[0]], [result], f"{result}_narrow", to=TensorProto.FLOAT16)
        nodes += [node, narrow]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model.SerializeToString()
