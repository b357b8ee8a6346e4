"""Convolutions of predictions in float32 on a CPU: without AVX-512, 3x3 of many channels with 4
instead of 9 products for each of their outputs (Lavin and Gray, arXiv 1509.09308, section 4.1:
F(2x2, 3x3)); with it, 1x1 by oneDNN on one thread, too."""

import torch
from torch import nn
from torch.nn import functional as F

CHANNELS = 1024  # of the input, at least; 256 gain a quarter, 64 lose
BAND = 1 << 23  # numbers of the transformed input at once, 32 MiB


class WinogradConv(nn.Module):
    """An nn.Conv2d of kernel 3 that keeps the size, with its weights transformed once."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.bias = conv.bias
        rows = conv.weight.new_tensor([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]]).double() / 2
        weight = (rows @ conv.weight.double() @ rows.T).float()  # (C',C,4,4)
        self.register_buffer("weight", weight.permute(2, 3, 1, 0).flatten(0, 1).contiguous())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N,C,H,W) -> (N,C',H,W), channels last; in bands of rows, to stay in the caches."""
        count, channels, height, width = x.shape
        down, right = (height + 1) // 2, (width + 1) // 2  # tiles of 2x2 outputs
        border = (0, 0, 1, 2 * right - width + 1, 1, 2 * down - height + 1)
        padded = F.pad(x.permute(0, 2, 3, 1), border)
        found = x.new_empty(count, 2 * down, 2 * right, self.weight.shape[2])
        most = max(1, BAND // (16 * count * right * channels))
        for top in range(0, down, most):
            rows = min(most, down - top)
            lines = x.new_empty(4, count, rows, padded.shape[2], channels)
            tiles = x.new_empty(4, 4, count, rows, right, channels)
            sum_inputs(padded[:, 2 * top : 2 * (top + rows) + 2], 1, lines)
            sum_inputs(lines, 3, tiles.transpose(0, 1))
            products = torch.bmm(tiles.view(16, -1, channels), self.weight)
            products = products.view(4, 4, count, rows, right, -1)
            for row, line in enumerate(sum_products(products)):
                for column, outputs in enumerate(sum_products(line)):
                    found[:, 2 * top + row : 2 * (top + rows) : 2, column::2] = outputs
        if self.bias is not None:
            found += self.bias
        return found[:, :height, :width].permute(0, 3, 1, 2)


def sum_inputs(x: torch.Tensor, axis: int, out: torch.Tensor) -> None:
    """Four sums of every four pixels along the axis, where fours begin at every second pixel."""
    a, b, c, d = x.unfold(axis, 4, 2).unbind(-1)
    torch.sub(a, c, out=out[0])
    torch.add(b, c, out=out[1])
    torch.sub(c, b, out=out[2])
    torch.sub(b, d, out=out[3])


def sum_products(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two outputs in a row from the four products along the first axis."""
    return x[0] + x[1] + x[2], x[1] - x[2] - x[3]


def choose_convolutions(network: nn.Module) -> None:
    """For inference, in place: exchange the convolutions that gain. None on a CPU with AVX-512, as
    MKL's products do not use it on AMD's, so that oneDNN takes 0.8 of their time. For the same
    reason 1x1 convolutions are dilated there: that changes nothing in them, but lets PyTorch call
    oneDNN on one thread, too, which takes 0.45 of the time of MKL's product."""
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    for module in [*network.modules()]:
        for name, conv in module.named_children():
            if type(conv) is not nn.Conv2d:
                continue
            if wide and conv.kernel_size == (1, 1):
                conv.dilation = (2, 2)
            elif not wide and conv.in_channels >= CHANNELS and fits(conv):
                setattr(module, name, WinogradConv(conv))


def fits(conv: nn.Conv2d) -> bool:
    geometry = (conv.kernel_size, conv.padding, conv.stride, conv.dilation, conv.groups)
    return geometry == ((3, 3), (1, 1), (1, 1), (1, 1), 1) and conv.padding_mode == "zeros"
