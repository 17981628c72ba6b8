"""What differs in graphs for ONNX Runtime's CUDA provider: operators of its own, and forms that its optimiser can fuse.

The values are those of the portable graphs. Attention becomes com.microsoft.MultiHeadAttention, which has flash kernels
and takes heads side by side, so that nothing is transposed. Rotary turns become com.microsoft.RotaryEmbedding, whose
kernel starts one block for each token and head, and is slow where heads are narrow: with pairs (2i, 2i + 1), as the
reference has them, the heads of queries, and those of keys, can be turned together as a few wide ones. The bias of the values
passes through attention unchanged, since its weights sum to 1, and goes into that of the output projection. Biases
elsewhere stay additions after the products, to be fused with GELU (by the optimiser) and with layer norms (see
fused_norms).

From the neck on, maps have their channels last, as convolutions and norms are computed (onnxruntime_cuda_neck and
onnxruntime_cuda_detector), and the detector takes as many pairs of every image, image by image (onnx.CUDA_DETECT).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam3lab.export import onnxruntime_cuda_neck
from sam3lab.export.onnxruntime_cuda_detector import lighten, pass_on
from sam3lab.export.onnxruntime_cuda_nodes import node
from sam3lab.model import operators
from sam3lab.model.image_encoder import Attention
from sam3lab.model.sam3 import Sam3
from sam3lab.model.weights import pairs

WIDEST = 1024  # threads of a CUDA block, of which RotaryEmbedding takes one a channel


@contextmanager
def adapted(model: Sam3) -> Iterator[None]:
    """Changes the model in place for export; attention is ONNX Runtime's while it lasts."""
    lighten(model.detector)
    encoder = model.image_encoder
    onnxruntime_cuda_neck.adapt(encoder)
    for layer in encoder.layers:
        layer.attention = RotaryAttention(layer.attention)
    width, heads = model.config.vit.width, model.config.vit.heads
    for name in ("window_table", "global_table"):
        table = getattr(encoder, name)
        setattr(encoder, name, table.repeat(1, 1, group(width, heads) // (width // heads)))
    with operators.replaced(attention):
        yield


def group(width: int, heads: int) -> int:
    """The width of as many heads as are turned as one: the most whole ones within WIDEST that divide the width."""
    return max(n * width // heads for n in range(1, heads + 1) if heads % n == 0 and n * width // heads <= WIDEST)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """As operators.attention, by one node."""
    inputs = (q, k, v) if bias is None else (q, k, v, None, None, bias)
    return node("MultiHeadAttention", inputs, {"num_heads": heads})


class RotaryAttention(Attention):
    """The image encoder's attention with a product each for queries, keys and values, and wide rotary heads."""

    def __init__(self, source: Attention):
        nn.Module.__init__(self)
        self.heads, width = source.heads, source.o_proj.in_features
        weights, biases = source.qkv_proj.weight.data.chunk(3), source.qkv_proj.bias.data.chunk(3)
        for name, *parts in zip("qk", weights, biases, strict=False):
            layer = nn.utils.skip_init(nn.Linear, width, width)
            layer.weight, layer.bias = (nn.Parameter(pairs(each, self.heads, back=True)) for each in parts)
            self.add_module(f"{name}_proj", layer)
        self.v_weight = nn.Parameter(weights[2].clone())
        self.group = group(width, self.heads)
        self.o_proj = source.o_proj
        pass_on(biases[2], self.o_proj)

    def mixed(self, x: Tensor, table: Tensor) -> Tensor:
        position = torch.zeros(1, dtype=torch.int64, device=x.device)
        attributes = {"num_heads": x.shape[-1] // self.group, "interleaved": 1}
        q, k = (
            node("RotaryEmbedding", (layer(x), position, table[0], table[1]), attributes)
            for layer in (self.q_proj, self.k_proj)
        )
        return operators.attention(q, k, F.linear(x, self.v_weight), self.heads)
