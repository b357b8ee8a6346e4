"""Deformable convolution (Dai et al., arXiv 1703.06211), as torchvision.ops.deform_conv2d; on a
CPU, where that takes four times as long, with grid_sample."""

import torch
from torch.nn import functional as F


def deform_conv(
    x: torch.Tensor,
    offset: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
) -> torch.Tensor:
    """(N,C,H,W), (N,2kk,H',W') y and x of each tap in pixels, (C',C,k,k) -> (N,C',H',W')."""
    if x.device.type == "cpu":
        columns = sampled(x, offset, weight.shape[-1], (stride, padding, dilation))
        found = columns.mT @ weight.flatten(1).mT  # channels last
        found = found if bias is None else found + bias
        return found.unflatten(1, offset.shape[-2:]).permute(0, 3, 1, 2)
    from torchvision.ops import deform_conv2d  # takes seconds

    how = {"stride": stride, "padding": padding, "dilation": dilation}
    found = deform_conv2d(x, offset, weight, bias, **how)
    return found.contiguous(memory_format=torch.channels_last)


def sampled(
    x: torch.Tensor, offset: torch.Tensor, side: int, geometry: tuple[int, int, int]
) -> torch.Tensor:
    """-> (N,C*side*side,H'*W'): the pixels, bilinear and 0 outside the image, under each tap."""
    stride, padding, dilation = geometry
    tap = torch.arange(side**2)[:, None, None]
    # Half precision cannot hold coordinates.
    down, right = offset.float().unflatten(1, (-1, 2)).unbind(2)  # (N,kk,H',W')
    y = down + stride * torch.arange(down.shape[2])[:, None] - padding + dilation * (tap // side)
    across = right + stride * torch.arange(down.shape[3]) - padding + dilation * (tap % side)
    height, width = x.shape[-2:]
    places = [(2 * across + 1) / width - 1, (2 * y + 1) / height - 1]  # -1 and 1: the edges
    found = F.grid_sample(x.float(), torch.stack(places, -1).flatten(1, 2), align_corners=False)
    return found.unflatten(2, (side**2, -1)).flatten(3).flatten(1, 2)
