"""The parts that several stages share."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam3lab.errors import UserError
from sam3lab.model import operators

ACTIVATIONS = {
    "gelu": F.gelu,
    "relu": F.relu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


def activation(name: str):
    """The function named by a configuration's hidden_act; UserError if it is not one of ACTIVATIONS."""
    try:
        return ACTIVATIONS[name]
    except KeyError:
        raise UserError(f"hidden_act {name!r} is not supported: {', '.join(ACTIVATIONS)}") from None


class FeedForward(nn.Module):
    """Two linear layers with an activation between them, the MLP of a transformer layer."""

    def __init__(self, width: int, hidden: int, act: str):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.activation = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class Perceptron(nn.Module):
    """Linear layers with ReLU between them; `sizes` are the widths from input to output."""

    def __init__(self, *sizes: int):
        super().__init__()
        for i, (a, b) in enumerate(pairwise(sizes), 1):
            self.add_module(f"layer{i}", nn.Linear(a, b))

    def forward(self, x: Tensor) -> Tensor:
        first, *rest = self.children()
        x = first(x)
        for layer in rest:
            x = layer(F.relu(x))
        return x


class NarrowLinear(nn.Module):
    """A linear layer of few inputs as a sum of columns, which a compiler fuses with what follows; shares parameters.

    As a product, its rows would be too short to fill a matrix unit.
    """

    def __init__(self, source: nn.Linear):
        super().__init__()
        self.weight, self.bias = source.weight, source.bias

    def forward(self, x: Tensor) -> Tensor:
        terms = (part.unsqueeze(-1) * column for part, column in zip(x.unbind(-1), self.weight.unbind(1), strict=True))
        return sum(terms, self.bias)


class SelfAttention(nn.Module):
    """Self-attention whose queries and keys, but not values, carry a position encoding."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qk_proj, self.v_proj = nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.o_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        q, k = self.qk_proj(x + position).chunk(2, dim=-1)
        return self.o_proj(operators.attention(q, k, self.v_proj(x), self.heads))


class TextAttention(nn.Module):
    """Attention of image tokens or queries to the text features, from which both keys and values come."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj, self.kv_proj = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.o_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, text: Tensor, bias: Tensor) -> Tensor:
        k, v = self.kv_proj(text).chunk(2, dim=-1)
        # one row a query: ONNX Runtime's Attention does not broadcast a bias over the queries
        bias = bias.expand(-1, -1, x.shape[1], -1)
        return self.o_proj(operators.attention(self.q_proj(x), k, v, self.heads, bias))


class ImageAttention(nn.Module):
    """Attention of queries to image tokens whose keys, but not values, carry a position encoding."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.o_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor, position: Tensor, bias: Tensor) -> Tensor:
        k, v = self.k_proj(memory + position), self.v_proj(memory)
        return self.o_proj(operators.attention(self.q_proj(x), k, v, self.heads, bias))


def mask_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask, True where attention may go, as an additive bias of that dtype: 0 there, the lowest number elsewhere."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
