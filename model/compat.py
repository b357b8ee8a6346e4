"""A network seen through another project's protocol, to reproduce the scores it publishes."""

import torch
from torch import nn
from torch.nn import functional as F

from model.normalize import IMAGENET_MEAN, IMAGENET_STD

MEAN, STD = (tuple(value / 255 for value in values) for values in (IMAGENET_MEAN, IMAGENET_STD))


class Compat(nn.Module):
    """Prepares images as the network's own project does, and upsamples its logits as that does."""

    def __init__(
        self,
        network: nn.Module,
        *,
        bgr: bool = False,
        resize: tuple[int, int] | None = None,
        pad: tuple[int, int] | None = None,
        align_corners: bool = False,
    ) -> None:
        """bgr: channels reversed, but normalized by the statistics of RGB (fregu856).

        resize: height and width to which images are scaled by nearest neighbour (fregu856).
        pad: smallest height and width; the mean is added at the right and below (chenxi116).
        align_corners: of the logits' upsampling to the size the network saw.
        """
        super().__init__()
        self.network = network
        self.bgr, self.resize, self.pad, self.align_corners = bgr, resize, pad, align_corners

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """(N,3,H,W) RGB normalized -> {"out": (N,K,H,W), or of the size `resize`}."""
        x = images
        if self.bgr:
            mean, std = (x.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
            x = ((x * std + mean).flip(1) - mean) / std
        if self.resize is not None:
            x = F.interpolate(x, self.resize, mode="nearest")
        height, width = x.shape[-2:]
        if self.pad is not None:
            below, right = (max(0, p - s) for p, s in zip(self.pad, (height, width), strict=True))
            x = F.pad(x, (0, right, 0, below))
        how = {"mode": "bilinear", "align_corners": self.align_corners}
        logits = F.interpolate(self.network(x)["out"], x.shape[-2:], **how)
        return {"out": logits[..., :height, :width]}
