"""FCN-32s, FCN-16s and FCN-8s on VGG-16 (Long et al., arXiv 1411.4038)."""

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional as F

from model.encoders import build_encoder
from model.layers import Norm

LINES = 4096  # channels of fc6 and fc7


class FCN32s(nn.Module):
    """VGG-16 with its linear layers as convolutions -> classes, at stride 32 (section 4.1)."""

    task = "semantic"
    encoders = ("vgg16", "vgg16_bn")
    smallest_image = 32  # five poolings
    skips: tuple[int, ...] = ()  # poolings whose scores are added: section 4.2

    def __init__(
        self,
        *,
        num_classes: int,
        backbone: str = "vgg16",
        norm: Norm = "bn",
        backbone_weights: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Checkpoints store all options."""
        super().__init__()
        self.backbone = build_encoder(backbone, norm=norm, weights=backbone_weights)
        *_, inputs = channels = self.backbone.channels
        self.classifier = nn.Sequential(
            nn.Conv2d(inputs, LINES, 7, padding=3), nn.ReLU(inplace=True), nn.Dropout2d(),
            nn.Conv2d(LINES, LINES, 1), nn.ReLU(inplace=True), nn.Dropout2d(),
            nn.Conv2d(LINES, num_classes, 1),
        )  # fmt: skip
        self.scores = nn.ModuleList(
            nn.Conv2d(channels[pooling - 1], num_classes, 1) for pooling in self.skips
        )

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """(N,3,H,W) normalized -> {"out": (N,K,H/32,W/32) logits}, or at stride 16 or 8."""
        features = self.backbone(images)
        height, width = features[-1].shape[2:]
        # Where fc6 reaches beyond the map on both sides, oneDNN 3.x on a CPU leaves its gradient in
        # bf16 uninitialized. The zeros are those of fc6's padding.
        wide = F.pad(features[-1], (0, max(0, 4 - width), 0, max(0, 4 - height)))
        # F.pad instead of a slice, whose layout would bind a torch.export to some sizes.
        logits = self.classifier(wide)
        logits = F.pad(logits, (0, width - wide.shape[-1], 0, height - wide.shape[-2]))
        for pooling, score in zip(self.skips, self.scores, strict=True):
            finer = score(features[pooling - 1])
            logits = finer + F.interpolate(logits, finer.shape[-2:], mode="bilinear")
        return {"out": logits}


class FCN16s(FCN32s):
    """FCN-32s with the scores of the fourth pooling added."""

    skips = (4,)


class FCN8s(FCN32s):
    """FCN-16s with the scores of the third pooling added."""

    skips = (4, 3)
