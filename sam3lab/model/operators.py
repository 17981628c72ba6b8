"""Attention as the model calls it, in one place, so that an export can put a runtime's own operator there."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """Multi-head scaled dot-product attention of q [B,T,C] to k, v [B,U,C], with an additive bias that broadcasts to
    [B,heads,T,U]; [B,T,C]."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)


@contextmanager
def replaced(operator: Callable) -> Iterator[None]:
    """Within, `operator` stands in the place of `attention`."""
    global attention
    before, attention = attention, operator
    try:
        yield
    finally:
        attention = before
