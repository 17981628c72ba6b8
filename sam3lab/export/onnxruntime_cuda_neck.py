"""The neck on maps [B,h,w,C] as products and one convolution a level, for ONNX Runtime's CUDA provider.

The reference scales the ViT's map up by transposed convolutions that do not overlap: each token gives four, so that they
are products. One that a 1 × 1 convolution follows is one product with it.
"""

from types import MethodType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam3lab.export.onnxruntime_cuda_nodes import convolution
from sam3lab.model.image_encoder import ImageEncoder, Level


def adapt(encoder: ImageEncoder) -> None:
    """Changes the image encoder in place, so that its features are [B,·,·,hidden]."""
    encoder.neck = nn.ModuleList(ProductLevel(level) for level in encoder.neck)
    encoder.map = MethodType(_map, encoder)


class ProductLevel(nn.Module):
    """A Level whose features are [B,scale·g,scale·g,hidden]."""

    def __init__(self, source: Level):
        super().__init__()
        up = [layer for layer in source.scale_layers if isinstance(layer, nn.ConvTranspose2d)]
        project = source.proj1.weight.data[:, :, 0, 0], source.proj1.bias.data
        products = [_product(layer) for layer in up[:-1]]
        products.append(_product(up[-1], *project) if up else project)
        self.weights, self.biases = (nn.ParameterList(parts) for parts in zip(*products, strict=True))
        self.scale = 2 ** len(up)
        self.weight = nn.Parameter(source.proj2.weight.data.permute(0, 2, 3, 1).contiguous())
        self.bias = source.proj2.bias

    def forward(self, x: Tensor) -> Tensor:
        """The ViT's map [B,g,g,C] to features."""
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = F.linear(x, weight, bias)
            if i + 1 < len(self.weights):
                x = F.gelu(x)
            if self.scale > 1:  # of each token two in its row and two in the next: [B,h,w,2,2·C'] to [B,2·h,2·w,C']
                rows = x.unflatten(-1, (2, -1)).transpose(2, 3)
                x = rows.unflatten(-1, (2, -1)).flatten(3, 4).flatten(1, 2)
        return convolution(x, self.weight) + self.bias


def _map(encoder: ImageEncoder, tokens: Tensor) -> Tensor:
    return tokens.unflatten(1, (encoder.side, encoder.side))


def _product(up: nn.ConvTranspose2d, weight: Tensor | None = None, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Weight [4·C',C] and bias [4·C'] that give the four values of a token, row by row; those of a transposed convolution
    with kernel and stride 2, and a 1 × 1 convolution after it if there is one."""
    kernel, shift = up.weight.data.double(), up.bias.data.double()  # [C,C',2,2]
    if weight is not None:
        kernel = torch.einsum("cdij,ed->ceij", kernel, weight.double())
        shift = weight.double() @ shift + bias.double()
    made = kernel.permute(2, 3, 1, 0).flatten(0, 2), shift.repeat(4)
    return tuple(each.to(up.weight.dtype).contiguous() for each in made)
