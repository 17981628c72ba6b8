"""The mixed-precision plan for a strongly typed runtime: products in half precision, the rest in float32.

A strongly typed runtime computes what the graph says and lowers no precision by itself, so the plan is part of the
graph, with its casts written out. Linear layers, convolutions, matrix products and attention take and give float16 or
bfloat16, with their weights and biases stored once in it. Residual streams, norms, rotary turns, boxes and their
logarithms and sigmoids stay float32, so that rounding does not add up over the layers: the split of mixed-precision
training (Micikevicius et al. 2018). What a product's sums are kept in is the runtime's own affair; for TensorRT's see
engine_accumulation.

torch.autocast makes the same split, but torch.export keeps it as regions that ONNX has no word for, and it would cast
weights at every run. So the plan is applied where torch's functions are called, while the model runs or is traced.
"""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sam3lab.model import operators
from sam3lab.model.sam3 import Sam3

_WEIGHTED = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
_NORMS = {F.layer_norm, F.group_norm}


def _upsample(x: Tensor, weight: Tensor, bias: Tensor, stride: tuple[int, int], *_) -> Tensor:
    """A transposed convolution of x [B,C,h,w] whose kernel is as large as its stride, as a matrix product."""
    y = x.permute(0, 2, 3, 1) @ weight.flatten(1)
    y = y.unflatten(-1, (-1, *stride)).permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
    return y + bias[:, None, None]


_PRODUCTS = {F.linear, F.conv2d, F.conv_transpose2d, _upsample, torch.matmul, Tensor.matmul, Tensor.__matmul__}


def mix(model: Sam3, dtype: torch.dtype) -> Sam3:
    """Let a float32 model compute its products in `dtype`, in place; returns it.

    Features and text features come out in `dtype`, the detector's outputs in float32 (on the way to the host a cast on
    the device is cheaper than one there).
    """
    for module in model.modules():
        if isinstance(module, _WEIGHTED):
            module.to(dtype)
    for stage in (model.image_encoder, model.text_encoder, model.detector):
        stage.forward = _mixed(stage.forward, dtype)
    model.detector.register_forward_pre_hook(_widen_streams)
    model.detector.register_forward_hook(lambda module, inputs, outputs: tuple(each.float() for each in outputs))
    return model


def _widen_streams(module: nn.Module, inputs: tuple) -> tuple:
    """The detector's inputs, in float32 where a residual stream starts: the coarsest map and the text features."""
    fine, middle, coarse, text, *rest = inputs
    return fine, middle, coarse.float(), text.float(), *rest


def _mixed(forward: Callable, dtype: torch.dtype) -> Callable:
    plain = operators.attention

    def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
        if bias is not None and bias.dtype == torch.float32:  # whose minimum would round to minus infinity
            bias = bias.clamp(min=torch.finfo(dtype).min).to(dtype)
        return plain(q.to(dtype), k.to(dtype), v.to(dtype), heads, bias)

    @functools.wraps(forward)  # torch.export reads its signature
    def mixed(*inputs):
        with _Plan(dtype), operators.replaced(attention):
            return forward(*inputs)

    return mixed


class _Plan(TorchFunctionMode):
    """Within, products are computed in `dtype`, norms in float32; what no rule names follows torch's type promotion."""

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.conv_transpose2d and self.dtype == torch.bfloat16:
            func = _upsample  # TensorRT's builder has no transposed convolution in bfloat16
        if func in _PRODUCTS:
            return func(*map(self._half, args), **{name: self._half(value) for name, value in kwargs.items()})
        if func in _NORMS:
            x, *rest = args
            return func(x.float(), *rest, **kwargs).to(x.dtype)
        return func(*args, **kwargs)

    def _half(self, value):
        return value.to(self.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
