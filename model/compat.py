"""Wrapper that applies another project's protocol, to reproduce its published scores."""

import torch
from torch import nn
from torch.nn import functional as F

from model.normalize import IMAGENET_MEAN, IMAGENET_STD

MEAN, STD = (tuple(value / 255 for value in values) for values in (IMAGENET_MEAN, IMAGENET_STD))


class Compat(nn.Module):
    """Prepares images and upsamples logits as the original project of the network does."""

    def __init__(
        self,
        network: nn.Module,
        *,
        bgr: bool = False,
        resize: tuple[int, int] | None = None,
        pad: tuple[int, int] | None = None,
        align_corners: bool = False,
    ) -> None:
        """bgr: reverse the channels, but normalize with the statistics of RGB (fregu856).

        resize: height and width, scaled to with nearest neighbour (fregu856).
        pad: minimum height and width, padded with the mean at the right and bottom (chenxi116).
        align_corners: for upsampling the logits to the size of the network's input.
        """
        super().__init__()
        self.network = network
        self.bgr, self.resize, self.pad, self.align_corners = bgr, resize, pad, align_corners

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """(N,3,H,W) RGB normalized -> {"out": (N,K,H,W), or (N,K,*resize)}."""
        x = images
        if self.bgr:
            # Filled on the device, because a CUDA graph cannot copy from the host.
            mean, std = (torch.cat([x.new_full((1, 1, 1), y) for y in z]) for z in (MEAN, STD))
            x = ((x * std + mean).flip(1) - mean) / std
        if self.resize is not None:
            x = F.interpolate(x, self.resize, mode="nearest")
        height, width = x.shape[-2:]
        if self.pad is not None:
            below, right = (max(0, p - s) for p, s in zip(self.pad, (height, width), strict=True))
            x = F.pad(x, (0, right, 0, below))
        how = {"mode": "bilinear", "align_corners": self.align_corners}
        logits = self.network(x)["out"].float()  # values rounded to bfloat16 would tie
        logits = F.interpolate(logits, x.shape[-2:], **how)
        return {"out": F.pad(logits, (0, width - x.shape[-1], 0, height - x.shape[-2]))}
