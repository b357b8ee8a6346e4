"""Panoptic-DeepLab (Cheng et al., arXiv 1911.10194): segments from semantic classes, a heatmap of
instance centers, and at each pixel the offset to the center of its instance."""

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional as F

from model.aspp import ASPP
from model.encoders import build_encoder
from model.layers import Norm, conv_norm_relu, set_norm


class PanopticDeepLab(nn.Module):
    """Encoder -> a decoder for the classes and one for the instances (section 3.1, figure 2)."""

    task = "panoptic"

    def __init__(
        self,
        *,
        num_classes: int,
        backbone: str = "resnet50",
        output_stride: int = 32,
        norm: Norm = "bn",
        separable: bool = False,
        center_window: int = 3,
        backbone_weights: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """output_stride: 32 as in the authors' ResNet-50, with one more decoder level, 16 or 8.
        separable: ASPP's 3x3 convolutions. center_window: side, odd, in pixels of the maps, of the
        square in which a center is the highest. Checkpoints store all options."""
        super().__init__()
        self.center_window = center_window
        self.backbone = build_encoder(
            backbone, output_stride=output_stride, norm=norm, weights=backbone_weights
        )
        channels, levels = self.backbone.channels, 3 if output_stride == 32 else 2
        how = {"rates": tuple(96 // output_stride * x for x in (1, 2, 3)), "separable": separable}
        self.semantic_decoder = Decoder(channels, (128, 64, 32)[-levels:], 256, **how)
        self.instance_decoder = Decoder(channels, (64, 32, 16)[-levels:], 128, **how)
        self.classifier = head(256, 256, num_classes)
        self.center = head(128, 32, 1)
        self.offset = head(128, 32, 2)
        for name, part in self.named_children():
            if name != "backbone":
                set_norm(part, norm)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """(N,3,H,W) normalized -> {"out": (N,K,H/4,W/4) logits, "center": (N,1,H/4,W/4) heat,
        1 at a center, in evaluation mode 0 elsewhere, "offset": (N,2,H/4,W/4) y and x from each
        pixel of an instance to its center, in pixels of these maps}."""
        features = self.backbone(images)
        instances = self.instance_decoder(features)
        center = self.center(instances)
        return {
            "out": self.classifier(self.semantic_decoder(features)),
            "center": center if self.training else peaks(center, self.center_window),
            "offset": self.offset(instances),
        }


class Decoder(nn.Module):
    """ASPP on the last stage; then each finer stage is added by concatenation and a 5x5."""

    def __init__(
        self,
        channels: list[int],
        skips: tuple[int, ...],
        outputs: int,
        *,
        rates: tuple[int, ...],
        separable: bool,
    ) -> None:
        """channels: of the encoder's stages; skips: of their projections, coarse to fine."""
        super().__init__()
        how = {"atrous_rates": rates, "separable": separable, "pool_norm": False}
        self.aspp = ASPP(channels[-1], **how)
        stages = channels[len(skips) - 1 :: -1]
        self.projects = nn.ModuleList(
            nn.Sequential(*conv_norm_relu(stage, skip))
            for stage, skip in zip(stages, skips, strict=True)
        )
        widths = [256, *[outputs] * len(skips)]
        self.fuses = nn.ModuleList(
            nn.Sequential(*conv_norm_relu(width + skip, outputs, 5, separable=True))
            for width, skip in zip(widths, skips, strict=False)
        )

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Features at strides 4, 8, ... -> (N,outputs,H/4,W/4)."""
        x = self.aspp(features[-1])
        stages = features[len(self.fuses) - 1 :: -1]
        for stage, project, fuse in zip(stages, self.projects, self.fuses, strict=True):
            x = F.interpolate(x, stage.shape[-2:], mode="bilinear")
            x = fuse(torch.cat([x, project(stage)], 1))
        return x


def peaks(heat: torch.Tensor, window: int) -> torch.Tensor:
    """(N,1,h,w) -> the same where it is the highest of the square around it, else 0."""
    return heat * (heat == F.max_pool2d(heat, window, 1, window // 2))


def head(inputs: int, width: int, outputs: int) -> nn.Sequential:
    block = conv_norm_relu(inputs, width, 5, separable=True)
    return nn.Sequential(*block, nn.Conv2d(width, outputs, 1))
