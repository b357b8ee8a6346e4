"""DeconvNet (Noh et al., "Learning Deconvolution Network", arXiv 1505.04366)."""

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import nn

from model.encoders import build_encoder
from model.layers import Norm, set_norm
from model.vgg import unpool

# Channels before and after each transposed convolution, from the coarsest stage on (table 2).
WIDTHS = (
    (512, 512, 512, 512), (512, 512, 512, 256), (256, 256, 256, 128), (128, 128, 64), (64, 64, 64),
)  # fmt: skip
LINES = 4096  # channels of fc6 and fc7


class DeconvNet(nn.Module):
    """VGG-16 with fc6, fc7 -> mirrored, with unpooling and transposed convolutions -> classes."""

    task = "semantic"
    encoders = ("vgg16_bn",)
    smallest_image = 224  # fc6 has 7x7 weights and no padding at stride 32

    def __init__(
        self,
        *,
        num_classes: int,
        backbone: str = "vgg16_bn",
        norm: Norm = "bn",
        backbone_weights: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Checkpoints store all options."""
        super().__init__()
        self.backbone = build_encoder(backbone, norm=norm, weights=backbone_weights)
        inputs = self.backbone.channels[-1]
        self.lines = nn.Sequential(
            *block(nn.Conv2d(inputs, LINES, 7, bias=False)),
            *block(nn.Conv2d(LINES, LINES, 1, bias=False)),
            *block(nn.ConvTranspose2d(LINES, inputs, 7, bias=False)),
        )
        self.decoder = nn.ModuleList(
            nn.Sequential(
                *(
                    layer
                    for pair in pairwise(widths)
                    for layer in block(nn.ConvTranspose2d(*pair, 3, padding=1, bias=False))
                )
            )
            for widths in WIDTHS
        )
        self.classifier = nn.Conv2d(WIDTHS[-1][-1], num_classes, 1)
        for part in (self.lines, self.decoder):
            set_norm(part, norm)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """(N,3,H,W) normalized, H and W at least 224 -> {"out": (N,K,H,W) logits}."""
        poolings = self.backbone.pooled(images)
        x = self.lines(poolings[-1][0])
        for stage, (_, places, size) in zip(self.decoder, poolings[::-1], strict=True):
            x = stage(unpool(x, places, size))
        return {"out": self.classifier(x)}


def block(conv: nn.Module) -> list[nn.Module]:
    return [conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(inplace=True)]
