"""The exported graphs as Triton needs them: images first, then each image's prompts, and no indices of pairs.

The nodes between are those of the exported graph, and so is what they compute. `signature` says why.
"""

import shutil
from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx_ir as ir

from sam3lab.export.onnx import INLINE_LIMIT
from sam3lab.serve.triton.signature import AXES, IMAGES, PROMPTS

REST = -1  # in the shape that Reshape is given: whatever is left


def write(source: Path, stage: str, target: Path) -> None:
    """Write the graph of a stage, from an exported one, checked; weights that the source keeps beside it, beside it too."""
    import onnx

    if stage == "image":  # has images first as it is
        shutil.copyfile(source, target)
        for weights in source.parent.glob(f"{source.name}*"):
            if weights != source:  # the graph knows it by its name
                shutil.copyfile(weights, target.parent / weights.name)
    else:
        model = ir.load(source)
        batched(model, stage)
        weights = sum(value.const_value.nbytes for value in model.graph.initializers.values())
        ir.save(model, target, external_data=f"{target.name}.data" if weights > INLINE_LIMIT else None)
    onnx.checker.check_model(target, full_check=True)


def batched(model: ir.Model, stage: str) -> None:
    """Give the text or detect stage's graph, in place, inputs and outputs [images, prompts, …] for [prompts or pairs, …]."""
    graph, build = model.graph, _Builder()
    inner = {value.name: value for value in graph.inputs}
    for name, value in inner.items():
        value.name = f"{name}_of_pairs"
    outer = {name: _like(inner[name], name, axes) for name, axes in AXES[stage].items()}
    given = outer["text_features" if stage == "detect" else "ids"]
    counts = build("Shape", given, start=0, end=2)  # [B, P]
    flat = {
        name: build("Reshape", value, build.constant([REST, *inner[name].shape[1:]]))
        for name, value in outer.items()
        if PROMPTS in AXES[stage][name]
    }
    if stage == "detect":
        flat |= _indices(build, counts, inner.keys())
    graph.insert_before(graph[0], build.nodes)
    graph.inputs[:] = outer.values()
    for name, value in flat.items():
        ir.convenience.replace_all_uses_with(inner[name], value)
    for name in inner.keys() - flat.keys():  # features of images, which the graph takes as they are
        ir.convenience.replace_all_uses_with(inner[name], outer[name])

    build = _Builder()
    results = []
    for value in graph.outputs:
        name, value.name = value.name, f"{value.name}_of_pairs"
        shape = build("Concat", counts, build.constant(list(value.shape[1:])), axis=0)
        results.append(build("Reshape", value, shape))
        results[-1].name, results[-1].type = name, value.type
        results[-1].shape = ir.Shape([IMAGES, PROMPTS, *value.shape[1:]])
    graph.extend(build.nodes)
    graph.outputs[:] = results
    for node in graph:  # "prompts" in the shapes of what lies between means all of them, not one image's
        for value in node.outputs:
            if value.shape is not None and not value.is_graph_output():
                value.shape = ir.Shape([None if isinstance(dim, ir.SymbolicDim) else dim for dim in value.shape])


def _indices(build: "_Builder", counts: ir.Value, wanted: Collection[str]) -> dict[str, ir.Value]:
    """For each pair its image's index, 0 0 0 1 1 1 …, and its prompt's, 0 1 2 3 4 5 …, from the counts [B, P].

    A graph without image_index has its pairs image by image, and its text_index is [B, P].
    """
    zero, one, last = (build.constant(value) for value in (0, 1, [REST]))
    prompts = build("Range", zero, build("ReduceProd", counts, keepdims=0), one)
    if "image_index" not in wanted:
        return {"text_index": build("Reshape", prompts, counts)}
    images = build("Gather", counts, zero, axis=0)
    column = build("Reshape", build("Range", zero, images, one), build.constant([REST, 1]))
    return {"image_index": build("Reshape", build("Expand", column, counts), last), "text_index": prompts}


def _like(value: ir.Value, name: str, axes: tuple[str, ...]) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape([*axes, *value.shape[1:]]), type=value.type)


class _Builder:
    """Collects nodes of standard operators in the order of their making."""

    def __init__(self):
        self.nodes: list[ir.Node] = []

    def __call__(self, operator: str, *inputs: ir.Value, **attributes) -> ir.Value:
        self.nodes.append(ir.node(operator, inputs, attributes))
        return self.nodes[-1].outputs[0]

    def constant(self, value) -> ir.Value:
        return self("Constant", value=ir.tensor(np.array(value, dtype=np.int64)))
