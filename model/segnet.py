"""SegNet (Badrinarayanan et al., arXiv 1511.00561)."""

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import nn

from model.encoders import build_encoder
from model.layers import Norm, conv_norm_relu, set_norm
from model.vgg import unpool

# Channels before and after each convolution, from the coarsest stage to the finest (figure 2).
WIDTHS = (
    (512, 512, 512, 512), (512, 512, 512, 256), (256, 256, 256, 128), (128, 128, 64), (64, 64),
)  # fmt: skip


class SegNet(nn.Module):
    """VGG-16 -> decoder of the same shape, which unpools to the places of the maxima -> classes."""

    task = "semantic"
    encoders = ("vgg16_bn",)
    smallest_image = 32  # five poolings

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
        self.decoder = nn.ModuleList(
            nn.Sequential(*(x for pair in pairwise(widths) for x in conv_norm_relu(*pair, 3)))
            for widths in WIDTHS
        )
        self.classifier = nn.Conv2d(WIDTHS[-1][-1], num_classes, 3, padding=1)
        set_norm(self.decoder, norm)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """(N,3,H,W) normalized, H and W at least 32 -> {"out": (N,K,H,W) logits}."""
        poolings = self.backbone.pooled(images)
        x = poolings[-1][0]
        for stage, (_, places, size) in zip(self.decoder, poolings[::-1], strict=True):
            x = stage(unpool(x, places, size))
        return {"out": self.classifier(x)}
