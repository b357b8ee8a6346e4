"""Semantic FPN (Kirillov et al., "Panoptic Feature Pyramid Networks", arXiv 1901.02446)."""

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional as F

from model.encoders import build_encoder
from model.layers import GROUPS, Norm, set_norm

PYRAMID, SEGMENTATION = 256, 128  # channels


class FPN(nn.Module):
    """ResNet -> feature pyramid -> every level to stride 4, added -> classes (section 3.1)."""

    task = "semantic"

    def __init__(
        self,
        *,
        num_classes: int,
        backbone: str = "resnet18",
        norm: Norm = "bn",
        backbone_weights: Mapping[str, torch.Tensor] | None = None,
        dropout: float = 0.2,
        align_corners: bool = False,  # True only for converted checkpoints (model/convert.py)
    ) -> None:
        """norm: of the backbone; the rest has GroupNorm, as in the paper. Checkpoints store all
        options."""
        super().__init__()
        self.backbone = build_encoder(
            backbone, output_stride=32, norm=norm, weights=backbone_weights
        )
        channels = self.backbone.channels
        self.lateral = nn.ModuleList(nn.Conv2d(inputs, PYRAMID, 1) for inputs in channels)
        # Of the levels at strides 4, 8, 16, 32; every 3x3 except the first level's is followed by
        # upsampling to the level below.
        self.levels = nn.ModuleList(
            nn.ModuleList(convolution(PYRAMID if n == 0 else SEGMENTATION) for n in range(number))
            for number in (1, 1, 2, 3)
        )
        self.align_corners = align_corners
        self.classifier = nn.Sequential(
            nn.Dropout2d(dropout), nn.Conv2d(SEGMENTATION, num_classes, 1)
        )
        set_norm(self.levels, norm)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """(N,3,H,W) normalized -> {"out": (N,K,H/4,W/4) logits}."""
        pyramid = [conv(x) for conv, x in zip(self.lateral, self.backbone(images), strict=True)]
        for number in (2, 1, 0):  # from the coarsest level down
            above = F.interpolate(pyramid[number + 1], pyramid[number].shape[-2:], mode="nearest")
            pyramid[number] = pyramid[number] + above
        sizes = [x.shape[-2:] for x in pyramid]
        total = self.levels[0][0](pyramid[0])
        for number in (1, 2, 3):
            x = pyramid[number]
            for conv, size in zip(self.levels[number], sizes[number - 1 :: -1], strict=False):
                how = {"mode": "bilinear", "align_corners": self.align_corners}
                x = F.interpolate(conv(x), size, **how)
            total = total + x
        return {"out": self.classifier(total)}


def convolution(inputs: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, SEGMENTATION, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.GroupNorm(GROUPS, SEGMENTATION), nn.ReLU(inplace=True))
