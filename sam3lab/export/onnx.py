"""The three stages as ONNX graphs, exported from the lean model through torch.export.

Opset 23 is the first with an Attention operator, and the newest that ONNX Runtime, OpenVINO and TensorRT's parser were
all seen to take; data/opsets.csv holds what each opset was measured to do under each runtime, and
`python -m sam3lab.export.opsets` measures it again.
"""

import logging
import warnings
from contextlib import nullcontext
from pathlib import Path

from sam3lab.errors import UserError
from sam3lab.export import manifest
from sam3lab.model.checkpoint import fingerprint, load_model
from sam3lab.model.config import CONTEXT

OPSET = 23
OPSETS = (18, 20, 21, 22, 23, 24)  # those that were measured
MIXED = {"fp16-mixed": "float16", "bf16-mixed": "bfloat16"}  # products in these types, see export.mixed
PRECISIONS = ("fp32", "fp16", *MIXED)
PORTABLE, ORT_CUDA = "portable", "onnxruntime-cuda"  # what a graph is for: see export.onnxruntime_cuda
TARGETS = (PORTABLE, ORT_CUDA)
INLINE_LIMIT = 2**31 - 2**26  # a protobuf message holds at most 2 GiB: larger weights go to a file beside the graph

# For each stage the names of its inputs and outputs; the first axis of each is dynamic, and this is its name.
INPUTS = {
    "image": {"pixels": "images"},
    "text": {"ids": "prompts", "mask": "prompts"},
    "detect": {
        "features_4x": "images",
        "features_2x": "images",
        "features_1x": "images",
        "text_features": "prompts",
        "mask": "prompts",
        "image_index": "pairs",
        "text_index": "pairs",
    },
}
# ONNX Runtime's CUDA provider is slow at selecting maps: its detector has K pairs of every image, image by image, whose
# texts are text_index [images, K].
CUDA_DETECT = {name: axis for name, axis in INPUTS["detect"].items() if axis != "pairs"} | {
    "text_index": ("images", "pairs_of_each")
}
OUTPUTS = {
    "image": ["features_4x", "features_2x", "features_1x"],
    "text": ["text_features"],
    "detect": ["logits", "presence", "boxes", "masks", "semantic"],
}


def export(
    checkpoint: Path,
    output: Path,
    resolution: int,
    precision: str = "fp32",
    opset: int = OPSET,
    target: str = PORTABLE,
) -> dict:
    """Write image.onnx, text.onnx and detect.onnx, checked, with their manifest into `output`; returns the manifest.

    Inputs are uint8 pixels, int64 ids and indices and bool masks in every precision; features and outputs are float32,
    float16 or bfloat16, boxes always float32. In the mixed precisions features are float16 or bfloat16 and outputs
    float32. For ONNX Runtime's CUDA provider features have their channels last, and detect has CUDA_DETECT's inputs.
    Raises UserError on a precision, target or opset that is not one of PRECISIONS, TARGETS and OPSETS, and as load_model
    does.
    """
    import torch

    from sam3lab.export import onnxruntime_cuda

    if precision not in PRECISIONS:
        raise UserError(f"precision {precision!r} cannot be exported: {' or '.join(PRECISIONS)}")
    if target not in TARGETS:
        raise UserError(f"graphs cannot be made for {target!r}: {' or '.join(TARGETS)}")
    if opset not in OPSETS:
        raise UserError(f"opset {opset} was not tried: give one of {', '.join(map(str, OPSETS))}")
    model = load_model(checkpoint, resolution, torch.float16 if precision == "fp16" else torch.float32)
    if precision in MIXED:
        from sam3lab.export.mixed import mix

        mix(model, getattr(torch, MIXED[precision]))
    stages = {"image": model.image_encoder, "text": model.text_encoder, "detect": model.detector}
    with onnxruntime_cuda.adapted(model) if target == ORT_CUDA else nullcontext():
        for stage, arguments in examples(model, target).items():
            _export_stage(stages[stage], stage, arguments, output / f"{stage}.onnx", opset, target)
    facts = {
        "checkpoint": fingerprint(checkpoint),
        "resolution": model.resolution,
        "precision": precision,
        "target": target,
        "opset": opset,
        "torch": torch.__version__,
        "inputs": inputs(target),
        "outputs": OUTPUTS,
    }
    return manifest.write(output, facts)


def inputs(target: str = PORTABLE) -> dict[str, dict[str, str | tuple[str, ...]]]:
    """INPUTS of a target's graphs; of one input more than the first axis is dynamic, and it has a tuple of names."""
    return INPUTS if target == PORTABLE else INPUTS | {"detect": CUDA_DETECT}


def examples(model, target: str = PORTABLE) -> dict[str, tuple]:
    """Inputs of the right shapes and types for each stage: 2 images, 3 prompts, 4 pairs (no size is special to export).

    Features are [B,hidden,·,·]; for ONNX Runtime's CUDA provider they are [B,·,·,hidden], and there is no image_index.
    """
    import torch

    side, hidden = model.resolution // 14, model.config.hidden
    dtype = model.image_encoder.patch_embed.weight.dtype
    mask = torch.ones(3, CONTEXT, dtype=torch.bool)
    features = tuple(torch.zeros(2, hidden, scale * side, scale * side, dtype=dtype) for scale in (4, 2, 1))
    text, index = torch.zeros(3, CONTEXT, hidden, dtype=dtype), torch.zeros(4, dtype=torch.int64)
    pairs = (index, index.clone())
    if target == ORT_CUDA:
        features = tuple(map.permute(0, 2, 3, 1).contiguous() for map in features)
        pairs = (index.unflatten(0, (2, 2)),)
    return {
        "image": (torch.zeros(2, 3, model.resolution, model.resolution, dtype=torch.uint8),),
        "text": (torch.zeros(3, CONTEXT, dtype=torch.int64), mask),
        "detect": (*features, text, mask, *pairs),
    }


def _export_stage(module, stage: str, arguments: tuple, path: Path, opset: int, target: str = PORTABLE) -> None:
    import onnx
    import torch

    from sam3lab.export import fused_norms, fused_products

    named = inputs(target)[stage].items()
    axes = {name: (axis,) if isinstance(axis, str) else axis for name, axis in named}
    dynamic = {axis: torch.export.Dim(axis) for names in axes.values() for axis in names}
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of operators of packages that are not installed
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                arguments,
                dynamo=True,
                opset_version=opset,
                input_names=list(axes),
                output_names=OUTPUTS[stage],
                dynamic_shapes=tuple({i: dynamic[axis] for i, axis in enumerate(names)} for names in axes.values()),
                verbose=False,
            )
    finally:
        logger.setLevel(level)
    if target == ORT_CUDA:
        fused_norms.fuse(program.model)
        fused_products.merge(program.model)
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces with the exporting machine's paths
    weights = sum(value.const_value.nbytes for value in program.model.graph.initializers.values())
    program.save(path, external_data=weights > INLINE_LIMIT)
    onnx.checker.check_model(path, full_check=True)
