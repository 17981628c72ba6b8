"""The detection stage: DETR encoder and decoder, class scores, and masks (after transformers' models/sam3).

Text prompts only. Box prompts (the reference's geometry encoder) are not computed: its output would be further tokens
beside the text features.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam3lab.model.config import PATCH, Config
from sam3lab.model.layers import FeedForward, ImageAttention, Perceptron, SelfAttention, TextAttention, mask_bias

PRESENCE_LIMIT, LOGIT_LIMIT = 10.0, 12.0  # Sam3DetrDecoder, Sam3DotProductScoring


def sine_grid(side: int, width: int) -> Tensor:
    """The sine position encoding [side²,width] of a square grid (Carion et al. 2020, DETR, normalised to 2π)."""
    position = torch.arange(1, side + 1, dtype=torch.float64, device="cpu") / (side + 1e-6) * 2 * math.pi
    angle = position[:, None] / 10000 ** (torch.arange(0, width // 2, 2, device="cpu") / (width // 2))
    code = torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)
    rows, columns = code[:, None].expand(-1, side, -1), code[None].expand(side, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1).float()


def sine_boxes(boxes: Tensor, width: int) -> Tensor:
    """The sine code [N,Q,4·width] of boxes [N,Q,4] (cx cy w h): of each number first the sines, then the cosines.

    The reference interleaves them and begins with y; the columns of the layer that reads this code are reordered when it
    is loaded.
    """
    frequency = 2 * math.pi / 10000 ** (torch.arange(0, width, 2, device=boxes.device, dtype=boxes.dtype) / width)
    phase = torch.arange(2, device=boxes.device, dtype=boxes.dtype) * (math.pi / 2)  # of sines, and of cosines
    return (boxes[..., None, None] * frequency + phase[:, None]).sin().flatten(2)


def corners(boxes: Tensor) -> Tensor:
    """Boxes (cx cy w h) as (x1 y1 x2 y2)."""
    centre, size = boxes.chunk(2, dim=-1)
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def inverse_sigmoid(x: Tensor, eps: float = 1e-3) -> Tensor:
    """log(x / (1 − x)) with both terms at least eps, so that it stays finite (Deformable DETR)."""
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


class EncoderLayer(nn.Module):
    """Image tokens attend to themselves and to the text; pre-norm."""

    def __init__(self, config: Config):
        super().__init__()
        detr = config.encoder
        self.self_attn, self.cross_attn = SelfAttention(detr.width, detr.heads), TextAttention(detr.width, detr.heads)
        self.layer_norm1, self.layer_norm2, self.layer_norm3 = (nn.LayerNorm(detr.width) for _ in range(3))
        self.mlp = FeedForward(detr.width, detr.mlp, detr.activation)

    def forward(self, x: Tensor, position: Tensor, text: Tensor, text_bias: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), position)
        x = x + self.cross_attn(self.layer_norm2(x), text, text_bias)
        return x + self.mlp(self.layer_norm3(x))


class DecoderLayer(nn.Module):
    """Queries attend to each other, to the text and to the image; post-norm."""

    def __init__(self, config: Config):
        super().__init__()
        detr = config.decoder
        self.self_attn = SelfAttention(detr.width, detr.heads)
        self.text_cross_attn = TextAttention(detr.width, detr.heads)
        self.vision_cross_attn = ImageAttention(detr.width, detr.heads)
        self.self_attn_layer_norm, self.text_cross_attn_layer_norm = (nn.LayerNorm(detr.width) for _ in range(2))
        self.vision_cross_attn_layer_norm, self.mlp_layer_norm = (nn.LayerNorm(detr.width) for _ in range(2))
        self.mlp = FeedForward(detr.width, detr.mlp, detr.activation)

    def forward(self, x, query_position, text, text_bias, memory, position, box_bias) -> Tensor:
        x = self.self_attn_layer_norm(x + self.self_attn(x, query_position))
        x = self.text_cross_attn_layer_norm(x + self.text_cross_attn(x + query_position, text, text_bias))
        h = self.vision_cross_attn(x + query_position, memory, position, box_bias)
        x = self.vision_cross_attn_layer_norm(x + h)
        return self.mlp_layer_norm(x + self.mlp(x))


class Decoder(nn.Module):
    """Refines a box for each of Q queries, layer by layer; a presence token goes before the queries."""

    def __init__(self, config: Config, side: int):
        super().__init__()
        detr, width = config.decoder, config.decoder.width
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(detr.layers))
        self.output_layer_norm, self.presence_layer_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_embed, self.reference_points = nn.Embedding(config.queries, width), nn.Embedding(config.queries, 4)
        self.presence_token = nn.Embedding(1, width)
        self.box_head, self.presence_head = Perceptron(width, width, width, 4), Perceptron(width, width, width, 1)
        self.ref_point_head = Perceptron(2 * width, width, width)
        self.box_rpb_embed_x, self.box_rpb_embed_y = (Perceptron(2, width, detr.heads) for _ in range(2))
        self.side = side

    def box_bias(self, boxes: Tensor, dtype: torch.dtype) -> Tensor:
        """Bias [N,heads,1+Q,g²] of attention by the log distances of patches to the boxes' edges; 0 for presence."""
        axis = torch.arange(self.side, device=boxes.device, dtype=boxes.dtype) / self.side
        edges = corners(boxes).unflatten(-1, (2, 2))
        distance = axis[:, None, None] - edges[:, :, None]  # [N,Q,g,(low,high),(x,y)]
        distance = (distance.sign() * torch.log2((8 * distance).abs() + 1) / 3).to(dtype)
        parts = self.box_rpb_embed_y(distance[..., 1]), self.box_rpb_embed_x(distance[..., 0])  # [N,Q,g,heads] each
        # their sum is large: what can be done to the parts, filling up and ordering in memory, is done to them
        down, across = (F.pad(part.permute(0, 3, 1, 2), (0, 0, 1, 0)).contiguous() for part in parts)
        return (down.unsqueeze(-1) + across.unsqueeze(-2)).flatten(3)

    def forward(self, memory: Tensor, position: Tensor, text: Tensor, text_bias: Tensor):
        """For each layer the queries [N,Q,C] after the output norm, the presence token [N,1,C] and boxes (cx cy w h)."""
        count, dtype = memory.shape[0], memory.dtype
        tokens = torch.cat([self.presence_token.weight, self.query_embed.weight])
        x = tokens[None].expand(count, -1, -1)
        boxes = self.reference_points.weight.float().sigmoid()[None].expand(count, -1, -1)
        states = []
        for layer in self.layers:
            # coordinates stay in float32: half precision would place a box no finer than half a pixel in 1000
            query_position = self.ref_point_head(sine_boxes(boxes, memory.shape[-1] // 2).to(dtype))
            query_position = F.pad(query_position, (0, 0, 1, 0))
            bias = self.box_bias(boxes, dtype)
            x = layer(x, query_position, text, text_bias, memory, position, bias)
            queries = self.output_layer_norm(x[:, 1:])
            refined = (self.box_head(queries).float() + inverse_sigmoid(boxes)).sigmoid()
            states.append((queries, x[:, :1], refined))
            boxes = refined.detach()
        return states

    def presence(self, token: Tensor) -> Tensor:
        """Presence logit [N,1] of a presence token [N,1,C]."""
        return self.presence_head(self.presence_layer_norm(token))[..., 0].clamp(-PRESENCE_LIMIT, PRESENCE_LIMIT)


class Scoring(nn.Module):
    """Class logits [N,Q]: how well each query matches the mean of the prompt's tokens."""

    def __init__(self, config: Config):
        super().__init__()
        width = config.decoder.width
        self.text_mlp, self.text_mlp_out_norm = Perceptron(width, config.decoder.mlp, width), nn.LayerNorm(width)
        self.text_proj, self.query_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, queries: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        text, valid = self.text_mlp_out_norm(self.text_mlp(text) + text), mask.unsqueeze(-1).to(text.dtype)
        pooled = (text * valid).sum(dim=1) / valid.sum(dim=1).clamp(min=1)
        # scaled before the product, so that half precision cannot overflow in it
        prompt = self.text_proj(pooled).unsqueeze(-1) * queries.shape[-1] ** -0.5
        return (self.query_proj(queries) @ prompt).squeeze(-1).clamp(-LOGIT_LIMIT, LOGIT_LIMIT)


class PixelDecoder(nn.Module):
    """Upsamples the encoder's tokens to the finest map, adding the image features on the way."""

    def __init__(self, hidden: int):
        super().__init__()
        self.conv_layers = nn.ModuleList(nn.Conv2d(hidden, hidden, kernel_size=3, padding=1) for _ in range(2))
        self.norms = nn.ModuleList(nn.GroupNorm(8, hidden) for _ in range(2))

    def forward(self, x: Tensor, middle: Tensor, fine: Tensor) -> Tensor:
        for skip, conv, norm in zip((middle, fine), self.conv_layers, self.norms, strict=True):
            x = F.relu(norm(conv(F.interpolate(x, scale_factor=2.0, mode="nearest") + skip)))
        return x


class MaskDecoder(nn.Module):
    """What masks are made of: an embedding of every pixel on the finest grid, and one of each query."""

    def __init__(self, config: Config, side: int):
        super().__init__()
        hidden = config.hidden
        self.side = side
        self.pixel_decoder = PixelDecoder(hidden)
        self.mask_embedder = Perceptron(hidden, hidden, hidden, hidden)
        self.instance_projection = nn.Conv2d(hidden, hidden, kernel_size=1)
        self.semantic_projection = nn.Conv2d(hidden, 1, kernel_size=1)
        self.prompt_cross_attn = TextAttention(hidden, config.mask_heads)
        self.prompt_cross_attn_norm = nn.LayerNorm(hidden)

    def forward(self, tokens, middle, fine, text, text_bias) -> Tensor:
        """Pixel embeddings [N,C,4g,4g]."""
        tokens = tokens + self.prompt_cross_attn(self.prompt_cross_attn_norm(tokens), text, text_bias)
        coarse = tokens.transpose(1, 2).unflatten(2, (self.side, self.side))
        return self.pixel_decoder(coarse, middle, fine)

    def masks(self, queries: Tensor, pixels: Tensor) -> Tensor:
        """Mask logits [N,Q,4g,4g] of queries [N,Q,C]."""
        # q·(W p + b) = (Wᵀ q)·p + q·b: projecting Q queries costs far less than projecting every pixel
        embedding, projection = self.mask_embedder(queries), self.instance_projection
        offset = embedding @ projection.bias
        masks = (embedding @ projection.weight[:, :, 0, 0]) @ pixels.flatten(2) + offset.unsqueeze(-1)
        return masks.unflatten(2, (4 * self.side, 4 * self.side))


class Detector(nn.Module):
    """Image features, text features and pairs of their indices to raw detections.

    fine, middle, coarse [B,C,·,·]; text [P,32,C]; mask bool [P,32]; image_index, text_index int64 [N]. Returns logits
    [N,Q], presence [N,1], boxes float32 [N,Q,4] (x1 y1 x2 y2, image sides = 1), mask logits [N,Q,4g,4g] and semantic
    logits [N,1,4g,4g].
    """

    def __init__(self, config: Config, resolution: int):
        super().__init__()
        side = resolution // PATCH
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder.layers))
        self.decoder = Decoder(config, side)
        self.scoring = Scoring(config)
        self.mask_decoder = MaskDecoder(config, side)
        self.register_buffer("position", sine_grid(side, config.hidden), persistent=False)

    def of_pairs(self, fine, middle, coarse, image_index) -> tuple[Tensor, Tensor, Tensor]:
        """Each pair's maps, the coarsest as tokens [N,g²,C]."""
        fine, middle, coarse = (x.index_select(0, image_index) for x in (fine, middle, coarse))
        return fine, middle, coarse.flatten(2).transpose(1, 2)

    def trunk(self, fine, middle, coarse, text, mask, image_index, text_index):
        """What the heads read: the decoder's states, layer by layer, pixel embeddings, and each pair's text and mask."""
        fine, middle, tokens = self.of_pairs(fine, middle, coarse, image_index)
        text, mask = text.index_select(0, text_index), mask.index_select(0, text_index)
        text_bias = mask_bias(mask[:, None, None], text.dtype)
        for layer in self.encoder:
            tokens = layer(tokens, self.position, text, text_bias)
        states = self.decoder(tokens, self.position, text, text_bias)
        return states, self.mask_decoder(tokens, middle, fine, text, text_bias), text, mask

    def forward(self, fine, middle, coarse, text, mask, image_index, text_index):
        states, pixels, text, mask = self.trunk(fine, middle, coarse, text, mask, image_index, text_index)
        queries, token, boxes = states[-1]
        logits, presence = self.scoring(queries, text, mask), self.decoder.presence(token)
        masks, semantic = self.mask_decoder.masks(queries, pixels), self.mask_decoder.semantic_projection(pixels)
        return logits, presence, corners(boxes), masks, semantic
