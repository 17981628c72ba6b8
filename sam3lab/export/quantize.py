"""INT8 graphs by static quantisation, one set for ONNX Runtime and OpenVINO.

Made from the float32 graphs by `onnxruntime.quantization`: QuantizeLinear/DequantizeLinear pairs around matrix products
and convolutions. Weights are signed, symmetric, one scale an output channel. Activations are unsigned with a zero
point, one scale a tensor: ONNX Runtime turns signed ones into these on x86, and fails on the graphs of this opset when
it does (microsoft/onnxruntime#25526); they also spend no half of the range on what a ReLU never gives. Ranges are the
least and greatest value seen in calibration: deterministic, needs the memory of one sample, and cuts off nothing.

What is not treated so:
- Attention, softmax, norms, activations, additions, interpolation stay float32 and read float32: they hold no weights,
  and rounding the residual stream would add up over the layers. So does what a product gives, its reader being one of
  these; a convolution's result is rounded, without which ONNX Runtime has no integer kernel for it.
- FLOAT, the arithmetic of boxes, whose results are coordinates: 8 bits would place an edge no finer than 1/256 of the
  image, and every layer refines what the last one gave. Likewise the one-channel semantic map.
- WEIGHTS, the query side of the decoder and the heads: a few dozen tokens take next to no time, and scores and boxes
  come from them directly. Weights alone are stored in 8 bits there. So are those of ConvTranspose, which ONNX Runtime
  has no integer kernel for, and the token embedding, of which only the rows looked up are turned to float.
"""

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sam3lab.errors import UserError
from sam3lab.export import manifest, qdq
from sam3lab.export.onnx import INPUTS
from sam3lab.paths import cache_dir

# Module names, or their beginnings, after the stage.
FLOAT = (
    "detect.decoder.ref_point_head",
    "detect.decoder.box_head",
    "detect.decoder.box_rpb_embed",
    "detect.mask_decoder.semantic_projection",
)
WEIGHTS = ("detect.decoder", "detect.scoring", "detect.mask_decoder.mask_embedder")
MEMORY = ("vision_cross_attn.k_proj", "vision_cross_attn.v_proj")  # of the decoder, but on every image token
QUANTIZED, WEIGHTS_ALONE = ("Conv", "MatMul"), ("ConvTranspose", "Gather", "Gemm", "MatMul")


class Sample(NamedTuple):
    """One call's inputs as the stages take them: pixels uint8 [B,3,S,S], ids int64 and mask bool [P,32], image_index and
    text_index int64 [N]."""

    pixels: np.ndarray
    ids: np.ndarray
    mask: np.ndarray
    image_index: np.ndarray
    text_index: np.ndarray


def sample(image: np.ndarray, prompts: Sequence[str], tokenizer, resolution: int) -> Sample:
    """A calibration sample of one image uint8 [H,W,3] with each of its prompts; tokenizer: model.tokenizer's."""
    from sam3lab import images

    ids, mask = tokenizer.encode(prompts)
    nothing = np.zeros(len(prompts), dtype=np.int64)
    return Sample(images.pixels(image, resolution)[None], ids, mask, nothing, np.arange(len(prompts)))


def graphs(checkpoint: Path, resolution: int, samples: Iterable[Sample]) -> Path:
    """The directory of a checkpoint's INT8 graphs, calibrated on `samples` on first use, verified each time.

    The key is the content of the float32 graphs and of the samples, the quantiser's version and the source. Raises
    UserError as `quantize` and cache.graphs do.
    """
    from sam3lab.export import cache

    source, samples = cache.graphs(checkpoint, resolution, "fp32"), list(samples)
    sources = [Path(path).read_text() for path in (__file__, qdq.__file__)]
    content = [manifest.verify(source), digest(samples), version("onnxruntime"), sources]
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]
    target = cache_dir("graphs") / f"int8-{key}"
    return cache.entry(target, lambda work: quantize(source, work, samples))


def quantize(source: Path, output: Path, samples: Sequence[Sample]) -> dict:
    """Write the INT8 graphs of the float32 ones in `source`, with their manifest, into `output`; returns the manifest.

    Inputs, outputs and their types are those of the float32 graphs. Raises UserError for graphs of another precision or
    damaged ones, and for samples that are none or of another resolution.
    """
    facts = manifest.verify(source)
    if facts["precision"] != "fp32":
        raise UserError(f"{source} holds {facts['precision']} graphs: quantise the fp32 ones")
    if not samples:
        raise UserError("there is nothing to calibrate on: give some images with their prompts")
    side = facts["resolution"]
    for each in samples:
        if each.pixels.shape[1:] != (3, side, side):
            raise UserError(f"a calibration image is {list(each.pixels.shape)}, the graphs take [B, 3, {side}, {side}]")
    for stage in INPUTS:
        _quantize_stage(stage, source, output, samples)
    facts = {name: value for name, value in facts.items() if name not in ("format", "files")}
    facts |= {"precision": "int8", "onnxruntime": version("onnxruntime")}
    return manifest.write(output, facts | {"calibration": digest(samples), "samples": len(samples)})


def digest(samples: Iterable[Sample]) -> str:
    """SHA-256 (hex) of calibration samples, in their order."""
    whole = hashlib.sha256()
    for each in samples:
        for array in each:
            whole.update(f"{array.dtype} {array.shape} ".encode())
            whole.update(np.ascontiguousarray(array))
    return whole.hexdigest()


def _quantize_stage(stage: str, source: Path, output: Path, samples: Sequence[Sample]) -> None:
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    name = f"{stage}.onnx"
    beside = (source / f"{name}.data").exists()  # weights too large for the graph's own file
    ways = _ways(stage, onnx.load(source / name, load_external_data=False).graph)
    full = [node for node, (way, op) in ways.items() if way == "full" and op in QUANTIZED]
    with _no_warnings(), tempfile.TemporaryDirectory(dir=output) as own:
        # it writes beside the graph that it reads, where another process may be reading and writing the same
        for path in source.glob(f"{name}*"):
            shutil.copyfile(path, Path(own) / path.name)
        quantize_static(
            str(Path(own) / name),
            str(output / name),
            _Reader(_feeds(stage, source, samples)),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTIZED),
            nodes_to_quantize=full,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            use_external_data_format=beside,
            extra_options={"WeightSymmetric": True, "OpTypesToExcludeOutputQuantization": ["MatMul"]},
        )
    model = onnx.load(output / name)
    (output / f"{name}.data").unlink(missing_ok=True)
    qdq.round_for(model.graph, set(full))
    qdq.weights_alone(model.graph, {node for node, (way, _) in ways.items() if way != "float"} - set(full))
    del model.graph.value_info[:]  # every runtime infers the shapes itself
    onnx.save(model, output / name, save_as_external_data=beside, location=f"{name}.data")
    onnx.checker.check_model(output / name, full_check=True)


def _ways(stage: str, graph) -> dict[str, tuple[str, str]]:
    """For each node with a weight of its own: how it is treated, "full", "weights" or "float", and its operator."""
    weights = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    readers: dict[str, list] = {}
    for node in graph.node:
        for value in node.input:
            readers.setdefault(value, []).append(node)
    ways = {}
    for node in graph.node:
        if node.op_type not in {*QUANTIZED, *WEIGHTS_ALONE} or weights.get(node.input[qdq.place(node)], 0) < 2:
            continue
        if node.op_type == "Gather" and weights[node.input[0]] > 2:  # not an embedding
            continue
        # A linear layer is a product, whose weight was transposed and lost its name, and the addition of its bias.
        added = (value for reader in readers.get(node.output[0], ()) for value in reader.input if value in weights)
        tensor = next(added, "") if node.op_type == "MatMul" else node.input[qdq.place(node)]
        module = f"{stage}.{tensor.rpartition('.')[0]}"
        if module.startswith(FLOAT):
            way = "float"
        elif module.startswith(WEIGHTS) and not module.endswith(MEMORY):
            way = "weights"
        else:
            way = "full"
        ways[node.name] = way, node.op_type
    return ways


def _feeds(stage: str, source: Path, samples: Iterable[Sample]) -> Iterator[dict[str, np.ndarray]]:
    """A stage's inputs for each sample; the detector's come from the float32 graphs of the other two."""
    import onnxruntime as ort

    def session(name: str):
        return ort.InferenceSession(source / f"{name}.onnx", providers=["CPUExecutionProvider"])

    image, text = (session("image"), session("text")) if stage == "detect" else (None, None)
    for each in samples:
        values = each._asdict()
        if stage == "detect":
            maps = image.run(None, {"pixels": each.pixels})
            values |= dict(zip(("features_4x", "features_2x", "features_1x"), maps, strict=True))
            values["text_features"] = text.run(None, {"ids": each.ids, "mask": each.mask})[0]
        yield {name: values[name] for name in INPUTS[stage]}


class _Reader:
    """An iterator as the quantiser reads one."""

    def __init__(self, feeds: Iterator[dict[str, np.ndarray]]):
        self._feeds = feeds

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


@contextmanager
def _no_warnings():
    """Silence the quantiser, which advises a pre-processing that changes nothing in these graphs."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
