"""The floor of each stage: what its arithmetic and its memory traffic take at the rates that the machine reaches.

After the roofline model (Williams, Waterman & Patterson 2009): no stage is done before its operations are, at the rate of
large matrix products in the case's precision, nor before its weights were read once, and its inputs and outputs read or
written once, at the rate of a large copy (where a model is so small that it stays in a cache from one call to the next,
that can be beaten). Operations are those of `sam3lab.model`, a multiply-add being two. Products of matrices and
convolutions are counted, as torch.utils.flop_counter does: everything else is a small part of them in a transformer of
this kind. Nothing is run for it, and no weights are read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from sam3lab.bench.case import Case
from sam3lab.bench.stages import PARTS

# The stages that one after another make up another one.
_SUMS = {"pipeline": ("image", "text", "detect"), "pipeline_cached": ("image", "detect")}
_DTYPES = {"bf16": "bfloat16", "fp16": "float16"}  # of the others, activations are float32
_WEIGHT_BYTES = {"int8": 1, "fp8": 1}


@dataclass(frozen=True)
class Work:
    """What one call of a stage costs at least: floating-point operations, and bytes to and from memory."""

    operations: int
    bytes: int


def work(case: Case) -> dict[str, Work]:
    """The work of one call of image, text and detect, for the case's checkpoint, precision, resolution, batch, prompts.

    Raises UserError for an unknown checkpoint.
    """
    from sam3lab.model.checkpoint import is_random, resolve
    from sam3lab.model.config import ARCHITECTURES, parse_config, read_config

    # a checkpoint of random weights need not be written for its shape to be known
    random = is_random(case.checkpoint)
    config = parse_config(ARCHITECTURES[case.checkpoint], "") if random else read_config(resolve(case.checkpoint))
    dtype = _DTYPES.get(case.precision, "float32")
    counted = _count(config, case.resolution, case.batch, len(case.prompts), dtype)
    found = {}
    for stage, (operations, weights, rest) in counted.items():
        width = _WEIGHT_BYTES.get(case.precision, 2 if case.precision in _DTYPES else 4)
        found[stage] = Work(operations, weights * width + rest)
    return found


def milliseconds(case: Case, ceilings: Sequence[dict[str, Any]]) -> dict[str, float]:
    """{stage: floor in ms} for image, text, detect and, as sums of theirs, pipeline and pipeline_cached.

    ceilings: rows of bench.ceilings.ceilings, of the case's device. Empty where they have no matrix product in its
    precision: there is no floor where no ceiling is known. The stages are taken as run one after another.
    """
    rates = {(row["ceiling"], row["precision"]): row["value"] for row in ceilings}
    product, copy = rates.get(("matmul", case.precision)), rates.get(("copy", "bytes"))
    if product is None or copy is None:
        return {}
    found = {
        stage: max(each.operations / (product * 1e9), each.bytes / (copy * 1e9)) * 1e3
        for stage, each in work(case).items()
    }
    return found | {whole: sum(found[part] for part in parts) for whole, parts in _SUMS.items()}


@cache
def _count(config, resolution: int, batch: int, prompts: int, dtype: str) -> dict[str, tuple[int, int, int]]:
    """{stage: (operations, weights read, bytes of inputs and outputs)}, counted on a model without weights."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from sam3lab.model.config import CONTEXT
    from sam3lab.model.sam3 import Sam3

    found, values = {}, {}

    def count(stage: str, module, *inputs):
        # the fused attention kernels of some devices are not counted; the plain one is two products
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            outputs = module(*inputs)
        values[stage] = outputs if isinstance(outputs, tuple) else (outputs,)
        moved = sum(value.numel() * value.element_size() for value in (*inputs, *values[stage]))
        # of the table of tokens a few rows are read
        weights = sum(p.numel() for name, p in module.named_parameters() if not name.startswith("token_embedding"))
        found[stage] = (counter.get_total_flops(), weights, moved)

    with torch.device("meta"):
        model = Sam3(config, resolution).eval().to("meta", getattr(torch, dtype))
        pixels = torch.zeros(batch, 3, resolution, resolution, dtype=torch.uint8)
        ids, pairs = torch.zeros(prompts, CONTEXT, dtype=torch.long), torch.zeros(batch * prompts, dtype=torch.long)
        mask = ids == 0
        count("image", model.image_encoder, pixels)
        count("text", model.text_encoder, ids, mask)
        count("detect", model.detector, *values["image"], *values["text"], mask, pairs, pairs)
    return {stage: found[stage] for stage in PARTS}
