"""The image stage: a ViT with windowed and global attention, and the neck that makes three feature maps of it.

After transformers' models/sam3 (Sam3ViTModel, Sam3VisionNeck). Two things differ in form, not in value. Tokens stay in
window order from the first layer to the last, so that a window is a reshape; global attention does not mind the order
as long as its rotary table follows it. And the rotary pairs are (i, i + d/2) instead of (2i, 2i + 1): the rows of the
query and key projections are reordered when weights are loaded.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam3lab.model import operators
from sam3lab.model.config import PATCH, Config
from sam3lab.model.layers import FeedForward


def rotary_table(rows: Tensor, columns: Tensor, dim: int, theta: float) -> Tensor:
    """Cosines and sines [2,T,dim/2] of 2-D axial rotary positions (Heo et al. 2024, RoPE-ViT) for T tokens.

    The first half of the pairs turns with the column, the second with the row.
    """
    frequency = theta ** -(torch.arange(0, dim // 2, 2, dtype=torch.float64, device="cpu") / (dim // 2))
    angle = torch.cat([columns[:, None] * frequency, rows[:, None] * frequency], dim=-1)
    return torch.stack([angle.cos(), angle.sin()]).float()


def rotate(x: Tensor, table: Tensor, heads: int) -> Tensor:
    """x [B,T,C] turned by `table` [2,T,d/2], where d = C/heads: in every head pair (i, i + d/2) by angle i."""
    (cos, sin), (a, b) = table.unsqueeze(-2), x.unflatten(-1, (heads, 2, -1)).unbind(-2)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(2)


class Grid:
    """How a side × side grid of patches is ordered into windows, with a margin where the side is no multiple of one.

    order [side²]: the patches, row by row, in window order. to_padded: for each place of the padded windows its token,
    or side² for a place in the margin; to_real: its inverse. Both are None where nothing needs padding.
    """

    def __init__(self, side: int, window: int):
        self.side, self.window = side, window
        per_side = -(-side // window)
        self.padded = per_side * window
        place = torch.arange(self.padded, device="cpu")
        inside = (place[:, None] < side) & (place < side)
        patch = torch.where(inside, place[:, None] * side + place, side * side)
        patch = patch.view(per_side, window, per_side, window).transpose(1, 2).flatten()
        kept = patch < side * side
        self.order = patch[kept]
        self.to_real = kept.nonzero()[:, 0] if self.padded != side else None
        self.to_padded = torch.where(kept, kept.cumsum(0) - 1, side * side) if self.padded != side else None


class Attention(nn.Module):
    """Rotary self-attention with one fused projection; queries, keys and values come out of it in this order."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv_proj, self.o_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, table: Tensor, area: int, to_padded: Tensor | None, to_real: Tensor | None) -> Tensor:
        """Tokens [B,T,C] of which each `area` in a row attend to each other; the last two as in `Grid`."""
        if to_padded is not None:  # the margin is zeros that take part in attention, as in the reference
            x = F.pad(x, (0, 0, 0, 1)).index_select(1, to_padded)
        h = self.mixed(x.reshape(-1, area, x.shape[-1]), table).reshape(x.shape)
        return self.o_proj(h if to_real is None else h.index_select(1, to_real))

    def mixed(self, x: Tensor, table: Tensor) -> Tensor:
        """What the heads give, [B,T,C], where all T tokens attend to each other."""
        q, k, v = self.qkv_proj(x).chunk(3, dim=-1)
        return operators.attention(rotate(q, table, self.heads), rotate(k, table, self.heads), v, self.heads)


class Layer(nn.Module):
    """Pre-norm transformer layer on tokens [B,T,C] in window order; windowed or global."""

    def __init__(self, config: Config, windowed: bool):
        super().__init__()
        vit = config.vit
        self.windowed, self.area = windowed, config.window**2
        self.layer_norm1, self.layer_norm2 = (nn.LayerNorm(vit.width, eps=vit.eps) for _ in range(2))
        self.attention = Attention(vit.width, vit.heads)
        self.mlp = FeedForward(vit.width, vit.mlp, vit.activation)

    def forward(self, x: Tensor, table: Tensor, to_padded: Tensor | None, to_real: Tensor | None) -> Tensor:
        among = (self.area, to_padded, to_real) if self.windowed else (x.shape[1], None, None)
        x = x + self.attention(self.layer_norm1(x), table, *among)
        return x + self.mlp(self.layer_norm2(x))


class Level(nn.Module):
    """One level of the neck: the ViT's map scaled by 4, 2 or 1 and projected; [B,C,g,g] to [B,hidden,scale·g,scale·g]."""

    def __init__(self, width: int, hidden: int, scale: int):
        super().__init__()
        up = [nn.ConvTranspose2d(width >> i, width >> (i + 1), kernel_size=2, stride=2) for i in range(scale // 2)]
        self.scale_layers = nn.Sequential(*(up if len(up) < 2 else [up[0], nn.GELU(), up[1]]))
        self.proj1 = nn.Conv2d(width >> len(up), hidden, kernel_size=1)
        self.proj2 = nn.Conv2d(hidden, hidden, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj2(self.proj1(self.scale_layers(x)))


class ImageEncoder(nn.Module):
    """uint8 pixels [B,3,S,S] to features at 4, 2 and 1 times the patch grid, [B,hidden,·,·] each, finest first."""

    def __init__(self, config: Config, resolution: int):
        super().__init__()
        vit, side = config.vit, resolution // PATCH
        self.patch_embed = nn.Conv2d(3, vit.width, kernel_size=PATCH, stride=PATCH, bias=False)
        self.position = nn.Parameter(torch.zeros(1, config.position_grid**2, vit.width))
        self.layer_norm = nn.LayerNorm(vit.width, eps=vit.eps)
        self.layers = nn.ModuleList(Layer(config, i not in config.global_layers) for i in range(vit.layers))
        self.neck = nn.ModuleList(Level(vit.width, config.hidden, scale) for scale in (4, 2, 1))

        self.side, grid = side, Grid(side, config.window)
        dim = vit.width // vit.heads
        place = torch.arange(config.window**2, device="cpu")
        row, column = grid.order // side, grid.order % side
        scale = config.window / side  # one full turn of the table per image, whatever its resolution
        tables = {
            "window_table": rotary_table(place // config.window, place % config.window, dim, config.rope_theta),
            "global_table": rotary_table(row * scale, column * scale, dim, config.rope_theta),
            "order": grid.order,
            "raster": grid.order.argsort(),
            # the learnt position embedding is tiled over the image, not interpolated
            "tile": (row % config.position_grid) * config.position_grid + column % config.position_grid,
        }
        if grid.padded == side:
            self.to_padded = self.to_real = None
        else:
            tables |= {"to_padded": grid.to_padded, "to_real": grid.to_real}
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)

    def patches(self, pixels: Tensor) -> Tensor:
        """The embedding of every patch, in window order [B,g²,C]: the convolution of the reference as one product.

        Rows of 588 numbers are filled up to 592, because matrix units want multiples of 8.
        """
        weight = self.patch_embed.weight.flatten(1)
        x = pixels.to(weight.dtype)  # at once, since TensorRT moves no bytes about; 0 to 255 are exact in every type
        x = x.unflatten(3, (-1, PATCH)).unflatten(2, (-1, PATCH)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        x = (x.index_select(1, self.order).float() / 127.5 - 1).to(weight.dtype)  # mean and deviation are 0.5
        fill = (0, -weight.shape[1] % 8)
        return F.linear(F.pad(x, fill), F.pad(weight, fill))

    def map(self, tokens: Tensor) -> Tensor:
        """Tokens [B,g²,C], row by row, as a map [B,C,g,g]."""
        return tokens.transpose(1, 2).unflatten(2, (self.side, self.side))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.layer_norm(self.patches(pixels) + self.position.index_select(1, self.tile))
        for layer in self.layers:
            table = self.window_table if layer.windowed else self.global_table
            x = layer(x, table, self.to_padded, self.to_real)
        x = self.map(x.index_select(1, self.raster))
        fine, middle, coarse = (level(x) for level in self.neck)
        return fine, middle, coarse
