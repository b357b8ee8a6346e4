"""Semantic FPN (Kirillov et al., "Panoptic Feature Pyramid Networks", arXiv 1901.02446)."""

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional as F

from model.efficientnet import EFFICIENTNETS
from model.encoders import build_encoder
from model.layers import Norm, conv_norm_relu, set_norm
from model.resnet import RESNETS

PYRAMID, SEGMENTATION = 256, 128  # channels


class FPN(nn.Module):
    """Encoder -> feature pyramid -> every level to stride 4, added -> classes (section 3.1)."""

    task = "semantic"
    encoders = (*RESNETS, *EFFICIENTNETS)

    def __init__(
        self,
        *,
        num_classes: int,
        backbone: str = "resnet18",
        norm: Norm = "bn",
        backbone_weights: Mapping[str, torch.Tensor] | None = None,
        dropout: float = 0.2,
        # Only for converted checkpoints (model/convert/):
        align_corners: bool = False,
        output_convs: bool = False,
        level_norm: Norm = "gn",
    ) -> None:
        """norm: of the backbone; the rest has GroupNorm, as in the paper. output_convs: a 3x3 on
        every merged level. Checkpoints store all options."""
        super().__init__()
        self.backbone = build_encoder(
            backbone, output_stride=32, norm=norm, weights=backbone_weights
        )
        channels = self.backbone.channels
        self.lateral = nn.ModuleList(nn.Conv2d(inputs, PYRAMID, 1) for inputs in channels)
        convs = [nn.Conv2d(PYRAMID, PYRAMID, 3, padding=1) for _ in channels if output_convs]
        self.output = nn.ModuleList(convs)

        def convolution(number: int) -> nn.Sequential:
            inputs = SEGMENTATION if number else PYRAMID
            return nn.Sequential(*conv_norm_relu(inputs, SEGMENTATION, 3))

        # Of the levels at strides 4, 8, 16, 32; every 3x3 except the first level's is followed by
        # upsampling to the level below.
        self.levels = nn.ModuleList(
            nn.ModuleList(convolution(n) for n in range(number)) for number in (1, 1, 2, 3)
        )
        self.align_corners = align_corners
        self.classifier = nn.Sequential(
            nn.Dropout2d(dropout), nn.Conv2d(SEGMENTATION, num_classes, 1)
        )
        set_norm(self.levels, level_norm if norm == "bn" else norm)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """(N,3,H,W) normalized -> {"out": (N,K,H/4,W/4) logits}."""
        pyramid = [conv(x) for conv, x in zip(self.lateral, self.backbone(images), strict=True)]
        for number in (2, 1, 0):  # from the coarsest level down
            above = F.interpolate(pyramid[number + 1], pyramid[number].shape[-2:], mode="nearest")
            pyramid[number] = pyramid[number] + above
        for number, conv in enumerate(self.output):
            pyramid[number] = conv(pyramid[number])
        sizes = [x.shape[-2:] for x in pyramid]
        total = self.levels[0][0](pyramid[0])
        for number in (1, 2, 3):
            x = pyramid[number]
            for conv, size in zip(self.levels[number], sizes[number - 1 :: -1], strict=False):
                how = {"mode": "bilinear", "align_corners": self.align_corners}
                x = F.interpolate(conv(x), size, **how)
            total = total + x
        return {"out": self.classifier(total)}
