"""The text stage: CLIP's text transformer and a projection to the detector's width (transformers' models/clip)."""

import torch
from torch import Tensor, nn

from sam3lab.model import operators
from sam3lab.model.config import CONTEXT, Config
from sam3lab.model.layers import FeedForward, mask_bias


class Attention(nn.Module):
    """Self-attention with one fused projection and an additive bias."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv_proj, self.out_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return self.out_proj(operators.attention(*self.qkv_proj(x).chunk(3, dim=-1), self.heads, bias))


class Layer(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, config: Config):
        super().__init__()
        text = config.text
        self.self_attn = Attention(text.width, text.heads)
        self.layer_norm1, self.layer_norm2 = (nn.LayerNorm(text.width, eps=text.eps) for _ in range(2))
        self.mlp = FeedForward(text.width, text.mlp, text.activation)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), bias)
        return x + self.mlp(self.layer_norm2(x))


class TextEncoder(nn.Module):
    """Token ids int64 [P,32] and mask bool [P,32] (True for tokens, False for padding) to features [P,32,hidden]."""

    def __init__(self, config: Config):
        super().__init__()
        text = config.text
        self.token_embedding = nn.Embedding(config.vocabulary, text.width)
        self.position_embedding = nn.Embedding(CONTEXT, text.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(text.layers))
        self.final_layer_norm = nn.LayerNorm(text.width, eps=text.eps)
        self.projection = nn.Linear(text.width, config.hidden)
        causal = torch.ones(CONTEXT, CONTEXT, dtype=torch.bool, device="cpu").tril()
        self.register_buffer("causal", causal, persistent=False)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.token_embedding(ids) + self.position_embedding.weight
        bias = mask_bias(self.causal & mask[:, None, None], x.dtype)
        for layer in self.layers:
            x = layer(x, bias)
        return self.projection(self.final_layer_norm(x))
