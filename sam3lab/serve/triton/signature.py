"""What the stages take and give in Triton: names, types and shapes, read from a graph or from the model itself.

Triton batches along the first axis of every tensor, and joins requests along it. In the stages as they are exported that
axis is of images, of prompts or of image–prompt pairs, and the detector's pairs are indices into the others, which mean
something else as soon as requests are joined. In Triton the first axis is therefore always of images, and each image
has P prompts of its own on the second axis; no index is left. P may differ from one request to the next.
"""

from pathlib import Path
from typing import NamedTuple

from sam3lab.errors import UserError
from sam3lab.export.onnx import INPUTS, OUTPUTS

STAGES = tuple(INPUTS)
IMAGES, PROMPTS = "images", "prompts"  # names of a graph's open axes
OPEN = -1

# For each stage the names of its inputs' open axes, which come first and in this order.
AXES = {
    stage: {
        name: (IMAGES,) if axis == IMAGES else (IMAGES, PROMPTS) for name, axis in inputs.items() if axis != "pairs"
    }
    for stage, inputs in INPUTS.items()
}

_TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "float32": "TYPE_FP32",
}


class Tensor(NamedTuple):
    """An input or output. type: Triton's name of it, as TYPE_FP32. dims: sizes after the first axis, OPEN where any will do."""

    name: str
    type: str
    dims: tuple[int, ...]


class Signature(NamedTuple):
    """What a stage takes and gives, in order."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def of_graph(path: Path) -> Signature:
    """The signature of an ONNX graph that `graphs.write` wrote.

    Raises UserError for a graph whose first axis is fixed, which Triton could not batch along, or that has types that
    it does not know.
    """
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    return Signature(*(tuple(_read(value, path) for value in values) for values in (graph.input, graph.output)))


def of_checkpoint(checkpoint: Path, resolution: int) -> dict[str, Signature]:
    """The signatures of the stages in float32, from the lean model, which is run without data: no weight is read.

    Raises UserError as read_config and check_resolution do.
    """
    import torch

    from sam3lab.export.onnx import examples
    from sam3lab.model.config import read_config
    from sam3lab.model.sam3 import Sam3

    with torch.device("meta"):
        model = Sam3(read_config(checkpoint), resolution)
    model = model.to("meta").eval()
    modules = {"image": model.image_encoder, "text": model.text_encoder, "detect": model.detector}
    signatures = {}
    for stage, arguments in examples(model).items():
        arguments = [argument.to("meta") for argument in arguments]
        with torch.no_grad():
            results = modules[stage](*arguments)
        results = results if isinstance(results, tuple) else (results,)
        inputs = [
            _tensor(name, value, len(AXES[stage][name]))
            for name, value in zip(INPUTS[stage], arguments, strict=True)
            if name in AXES[stage]
        ]
        outputs = [
            _tensor(name, value, 1 if stage == "image" else 2)
            for name, value in zip(OUTPUTS[stage], results, strict=True)
        ]
        signatures[stage] = Signature(tuple(inputs), tuple(outputs))
    return signatures


def _tensor(name: str, value, open_axes: int) -> Tensor:
    """A tensor as it is exported has one open axis; in Triton it has `open_axes`."""
    return Tensor(
        name, _type(str(value.dtype).removeprefix("torch."), name), (OPEN,) * (open_axes - 1) + tuple(value.shape[1:])
    )


def _read(value, path: Path) -> Tensor:
    import onnx

    kind = value.type.tensor_type
    first, *rest = (dim.dim_value if dim.HasField("dim_value") else OPEN for dim in kind.shape.dim)
    if first != OPEN:
        raise UserError(
            f"{value.name} of {path} is {first} along its first axis, and Triton batches along it: export it anew"
        )
    return Tensor(value.name, _type(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name, str(path)), tuple(rest))


def _type(name: str, where: str) -> str:
    try:
        return _TYPES[name]
    except KeyError:
        raise UserError(f"{where} has values of type {name}, and the stages have only {', '.join(_TYPES)}") from None
