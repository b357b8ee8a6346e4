"""Gradients of the weights of 3x3 convolutions as matrix products, for training in float32 on a CPU
without AVX-512, where oneDNN with channels last needs up to three times as long."""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

CHANNELS = 64  # of the input, at least


class Convolution(torch.autograd.Function):
    """F.conv2d of kernel 3 and stride 1 that keeps the size, channels last; d: its dilation."""

    @staticmethod
    def forward(
        ctx: Any, d: int, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.d = d
        return F.conv2d(x, weight, bias, padding=d, dilation=d)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        _, of_x, of_weight, of_bias = ctx.needs_input_grad
        sizes = weight.shape[:1], [1, 1], [ctx.d] * 2, [ctx.d] * 2, False, [0, 0], 1
        found = torch.ops.aten.convolution_backward(
            gradient, x, weight, *sizes, [of_x, False, of_bias]
        )
        own = weight_gradient(x, gradient, ctx.d) if of_weight else None
        return None, found[0], own, found[2]


def weight_gradient(x: torch.Tensor, gradient: torch.Tensor, d: int) -> torch.Tensor:
    """(N,C,h,w), (N,C',h,w) -> (C',C,3,3), channels last: for each of the nine weights the product
    of the pixels it joins. Pixels beyond the border, zeros in a padded image, are left out."""
    rows, columns = (joined(length, d) for length in x.shape[2:])
    found = x.new_zeros(gradient.shape[1], 3, 3, x.shape[1])
    x, gradient = x.permute(2, 0, 3, 1), gradient.permute(2, 0, 3, 1)  # rows first: fewer copies
    for j, (of_x, of_gradient) in enumerate(columns):
        inputs, outputs = x[:, :, of_x].contiguous(), gradient[:, :, of_gradient].contiguous()
        for i, (of_inputs, of_outputs) in enumerate(rows):
            pixels = outputs[of_outputs].flatten(0, 2)
            if len(pixels):
                torch.mm(pixels.T, inputs[of_inputs].flatten(0, 2), out=found[:, i, j])
    return found.permute(0, 3, 1, 2)


def joined(length: int, d: int) -> list[tuple[slice, slice]]:
    """The inputs and the outputs that each of three weights joins, along one side of an image."""
    d = min(d, length)
    ends = slice(0, length - d), slice(d, length)
    return [ends, (slice(0, length), slice(0, length)), ends[::-1]]


def matrix_gradients_gain() -> bool:
    """Whether this CPU was found to be faster with them (docs/results.md)."""
    return torch.backends.cpu.get_cpu_capability() == "AVX2"


def use_matrix_gradients(network: nn.Module) -> None:
    """For training, in place. Outputs keep their bits, gradients differ by rounding."""
    for conv in network.modules():
        if isinstance(conv, nn.Conv2d) and conv.in_channels >= CHANNELS:
            d = conv.dilation[0]
            geometry = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups)
            if geometry == ((3, 3), (1, 1), (d, d), (d, d), 1) and conv.padding_mode == "zeros":
                conv._conv_forward = partial(Convolution.apply, d)
