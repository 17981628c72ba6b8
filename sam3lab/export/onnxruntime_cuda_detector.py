"""The detector with fewer nodes for ONNX Runtime's CUDA provider, of the same value.

Most of the detector's nodes are small: they take as long as a kernel takes to start. Biases that need not be added are
not: that of keys, which moves all scores of a query alike, and that of values, which passes through attention into the
output projection, since the weights sum to 1. relu(Wx + b) is max(Wx, −b) + b, and b is passed on to the next layer. The
two networks of the box bias, one for each axis, become one, whose weights are theirs in blocks.
"""

import math
from itertools import pairwise
from types import MethodType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam3lab.export.onnxruntime_cuda_nodes import convolution, node
from sam3lab.model import operators
from sam3lab.model.detector import Decoder, Detector, MaskDecoder, PixelDecoder
from sam3lab.model.layers import FeedForward, ImageAttention, Perceptron, SelfAttention, TextAttention


def lighten(detector: Detector) -> None:
    """Changes the detector in place."""
    for module in list(detector.modules()):
        if isinstance(module, SelfAttention | TextAttention | ImageAttention):
            _without_key_and_value_bias(module)
        elif isinstance(module, Perceptron) or (isinstance(module, FeedForward) and module.activation is F.relu):
            for layer, following in pairwise(_layers(module)):
                pass_on(layer.bias, following)
            module.forward = MethodType(_shifted, module)
    detector.decoder.box_bias_network = BoxBias(detector.decoder)
    detector.decoder.box_bias = detector.decoder.box_bias_network.forward
    masks = detector.mask_decoder
    masks.pixel_decoder = ChannelsLast(masks.pixel_decoder)
    masks.semantic_projection = Semantic(masks.semantic_projection)
    masks.forward, masks.masks = MethodType(_pixels, masks), MethodType(_masks, masks)
    detector.of_pairs, detector.forward = MethodType(_of_pairs, detector), MethodType(_by_image, detector)


def pass_on(bias: Tensor, layer: nn.Linear) -> None:
    """Adds to a layer's bias what a bias of its input adds to its output."""
    passed = layer.weight.data.double() @ bias.data.double()
    layer.bias.data = (layer.bias.data.double() + passed).to(layer.bias.dtype)


class BoxBias(nn.Module):
    """Decoder.box_bias with the networks of both axes as one, made of a decoder that `lighten` has changed."""

    def __init__(self, decoder: Decoder):
        super().__init__()
        side = decoder.side
        first, second = (
            [getattr(network, name) for network in (decoder.box_rpb_embed_y, decoder.box_rpb_embed_x)]
            for name in ("layer1", "layer2")
        )
        # of distances to the (low, high) edge on (x, y), of a 1 and of nothing: eight, since products over fewer are slow
        weight = first[0].weight.new_zeros(2, first[0].out_features, 4, 2)
        for axis, layer in enumerate(first):
            weight[axis, :, :2, 1 - axis] = layer.weight.data / (3 * math.log(2))
            weight[axis, :, 2, 0] = layer.bias.data
        self.first = nn.Parameter(weight.flatten(2).flatten(0, 1))
        blocks = torch.block_diag(*(layer.weight.data for layer in second)).unflatten(0, (2, -1))
        self.second = nn.Parameter(blocks.transpose(0, 1).flatten(0, 1))  # rows of a head side by side
        place = torch.zeros(side, 4, 2)
        place[:, :2] = torch.arange(side)[:, None, None] / side
        place[:, 2] = (math.e - 1) / 8  # whose logarithm is taken to be 1
        edges = torch.tensor([[[1.0], [1], [0], [0]], [[-0.5], [0.5], [0], [0]]])
        self.place, self.of_centre, self.of_size = map(nn.Parameter, (place, *edges))
        # what is added up along rows and columns: a product, which is faster than a sum that broadcasts
        one, ones = torch.eye(side, dtype=self.first.dtype), torch.ones(side, dtype=self.first.dtype)
        self.spread = nn.Parameter(torch.cat([torch.kron(one, ones), torch.kron(ones, one)]))

    def forward(self, boxes: Tensor, dtype: torch.dtype) -> Tensor:
        """As Decoder.box_bias, but for a constant of each head, which moves all scores of a query alike."""
        centre, size = (part.unsqueeze(-2) for part in boxes.chunk(2, dim=-1))
        edges = centre * self.of_centre + size * self.of_size
        distance = self.place - edges.unsqueeze(-3)  # [N,Q,g,(low,high,1,-),(x,y)]
        distance = distance.sign() * torch.log((8 * distance).abs() + 1)  # the scale is in the weights
        hidden = F.relu(F.linear(distance.to(dtype).flatten(3), self.first))
        parts = F.linear(hidden, self.second).unflatten(-1, (-1, 2))  # [N,Q,g,heads,(y,x)]
        parts = F.pad(parts.permute(0, 3, 1, 4, 2).flatten(3), (0, 0, 1, 0))  # [N,heads,1+Q,2g]
        return parts @ self.spread


class ChannelsLast(nn.Module):
    """PixelDecoder on maps [N,h,w,C], as its convolutions and norms are computed, so that nothing is reordered between."""

    def __init__(self, source: PixelDecoder):
        super().__init__()
        layers = list(zip(source.conv_layers, source.norms, strict=True))
        self.weights = nn.ParameterList(conv.weight.data.permute(0, 2, 3, 1).contiguous() for conv, _ in layers)
        self.biases = nn.ParameterList(conv.bias.data for conv, _ in layers)
        self.gains = nn.ParameterList(norm.weight.data.float() for _, norm in layers)
        self.shifts = nn.ParameterList(norm.bias.data.float() for _, norm in layers)
        self.norm = {"groups": source.norms[0].num_groups, "epsilon": source.norms[0].eps}

    def forward(self, x: Tensor, middle: Tensor, fine: Tensor) -> Tensor:
        """Coarse tokens [N,g,g,C] and maps [M,2g,2g,C] and [M,4g,4g,C] to pixel embeddings [N,4g,4g,C]; N is K·M."""
        for i, skip in enumerate((middle, fine)):
            rows = skip.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # [M,h,2,w,2,C]
            pairs = x.unflatten(0, (skip.shape[0], -1))
            # upsampled by the sum itself, each token for two rows and two columns, each image for its pairs
            summed = pairs[:, :, :, None, :, None] + rows[:, None]
            x = summed.flatten(4, 5).flatten(2, 3).flatten(0, 1)
            x = convolution(x, self.weights[i])
            # the convolution's bias as the norm's other summand, which it broadcasts
            bias = self.biases[i].expand(x.shape[0], 1, 1, -1)
            attributes = {**self.norm, "activation": 0, "channels_last": 1}
            x = F.relu(node("SkipGroupNorm", (x, self.gains[i], self.shifts[i], bias), attributes))
        return x


class Semantic(nn.Module):
    """The semantic projection of pixel embeddings [N,4g,4g,C] as a product; [N,1,4g,4g]."""

    def __init__(self, source: nn.Conv2d):
        super().__init__()
        self.weight, self.bias = nn.Parameter(source.weight.data[:, :, 0, 0]), source.bias

    def forward(self, pixels: Tensor) -> Tensor:
        return F.linear(pixels.flatten(1, 2), self.weight, self.bias).flatten(1).unflatten(1, (1, *pixels.shape[1:3]))


def _by_image(module: Detector, fine, middle, coarse, text, mask, text_index):
    """Detector.forward of maps [M,·,·,C] and K pairs of each, image by image; text_index int64 [M,K]."""
    return Detector.forward(module, fine, middle, coarse, text, mask, text_index, text_index.flatten())


def _of_pairs(module: Detector, fine, middle, coarse, pairs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As Detector.of_pairs for `pairs` [M,K], but the finer maps as they are: `ChannelsLast` sums them with each pair's."""
    tokens = coarse.flatten(1, 2).unsqueeze(1).expand(-1, pairs.shape[1], -1, -1)
    return fine, middle, tokens.flatten(0, 1)


def _pixels(module: MaskDecoder, tokens: Tensor, middle: Tensor, fine: Tensor, text: Tensor, bias: Tensor) -> Tensor:
    tokens = tokens + module.prompt_cross_attn(module.prompt_cross_attn_norm(tokens), text, bias)
    return module.pixel_decoder(tokens.unflatten(1, (module.side, module.side)), middle, fine)


def _masks(module: MaskDecoder, queries: Tensor, pixels: Tensor) -> Tensor:
    embedding, projection = module.mask_embedder(queries), module.instance_projection
    offset = embedding @ projection.bias
    masks = (embedding @ projection.weight[:, :, 0, 0]) @ pixels.flatten(1, 2).transpose(1, 2)
    # in their shape before the sum: a node that only reshapes an output copies it
    return masks.unflatten(2, (4 * module.side, 4 * module.side)) + offset[..., None, None]


def _layers(module: nn.Module) -> list[nn.Linear]:
    return [layer for layer in module.children() if isinstance(layer, nn.Linear)]


def _shifted(module: nn.Module, x: Tensor) -> Tensor:
    """Linear layers with ReLU between them, whose hidden values are less by the bias that was passed on."""
    *layers, last = _layers(module)
    for layer in layers:
        x = torch.maximum(F.linear(x, layer.weight), -layer.bias)
    return last(x)


def _without_key_and_value_bias(module: nn.Module) -> None:
    width = module.o_proj.in_features
    for name in ("v_proj", "kv_proj"):
        if (layer := getattr(module, name, None)) is not None:
            pass_on(layer.bias[-width:], module.o_proj)
            layer.bias = None
    if isinstance(module, ImageAttention):
        module.k_proj.bias = None
    elif isinstance(module, SelfAttention):  # queries and keys apart, so that they need not be taken apart
        layer = module.qk_proj
        module.q_weight, module.k_weight = (nn.Parameter(half.clone()) for half in layer.weight.data.chunk(2))
        module.q_bias = nn.Parameter(layer.bias.data[:width].clone())
        module.forward = MethodType(_apart, module)


def _apart(module: SelfAttention, x: Tensor, position: Tensor) -> Tensor:
    placed = x + position
    q, k = F.linear(placed, module.q_weight, module.q_bias), F.linear(placed, module.k_weight)
    return module.o_proj(operators.attention(q, k, module.v_proj(x), module.heads))
