"""DeepLabV3+ (Chen et al., arXiv 1802.02611)."""

from collections.abc import Mapping
from itertools import chain

import torch
from torch import nn
from torch.nn import functional as F

from model.aspp import ASPP
from model.deeplabv3 import ATROUS_RATES
from model.encoders import build_encoder
from model.layers import Norm, Separable, conv_norm_relu, fcn_head, set_norm
from model.resnet import Contract


class DeepLabV3Plus(nn.Module):
    """Dilated ResNet -> ASPP -> upsampled, beside features at stride 4 -> 3x3 -> classes."""

    task = "semantic"
    smallest_batch = 2  # BatchNorm after image pooling has one value per image

    def __init__(
        self,
        *,
        num_classes: int,
        backbone: str = "resnet18",
        output_stride: int = 8,
        norm: Norm = "bn",
        multi_grid: tuple[int, ...] = (1, 1, 1),
        aux: bool = False,
        separable: Separable = False,
        backbone_weights: Mapping[str, torch.Tensor] | None = None,
        dropout: float = 0.1,
        # Only for converted checkpoints (model/convert/):
        atrous_rates: tuple[int, ...] | None = None,
        contract: Contract | None = None,
        stem: tuple[int, int, int] | None = None,
        low_level_channels: int = 48,  # section 4.1, table 1
        head_channels: int = 256,
        project_kernel: int = 1,
        post_conv: bool = False,
        decoder_convs: int = 1,
        align_corners: bool = False,
    ) -> None:
        """separable: depthwise separable 3x3 convolutions in ASPP and decoder (section 3.1).
        post_conv: a 3x3 convolution after the ASPP. Checkpoints store all options.
        """
        super().__init__()
        self.backbone = build_encoder(
            backbone,
            output_stride=output_stride,
            multi_grid=multi_grid,
            contract=contract,
            norm=norm,
            stem=stem,
            weights=backbone_weights,
        )
        c2, _, c4, c5 = self.backbone.channels
        width, self.align_corners = head_channels, align_corners
        self.aspp = ASPP(
            c5,
            atrous_rates=atrous_rates or ATROUS_RATES[output_stride],
            channels=width,
            project_kernel=project_kernel,
            dropout=dropout,
            separable=separable,
        )

        def conv(inputs: int) -> list[nn.Module]:
            return conv_norm_relu(inputs, width, 3, separable=separable)

        self.post = nn.Sequential(*(conv(width) if post_conv else []))
        self.low_level = nn.Sequential(*conv_norm_relu(c2, low_level_channels))
        decoder = [conv(width) for _ in range(decoder_convs - 1)]
        self.classifier = nn.Sequential(
            *chain(conv(width + low_level_channels), *decoder), nn.Conv2d(width, num_classes, 1)
        )
        self.aux_classifier = fcn_head(c4, num_classes) if aux else None
        parts = (self.aspp, self.post, self.low_level, self.classifier, self.aux_classifier)
        for part in parts:
            if part is not None:
                set_norm(part, norm)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """(N,3,H,W) normalized -> {"out": (N,K,H/4,W/4) logits}; in training, "aux" from layer3."""
        c2, _, c4, c5 = self.backbone(images)
        how = {"size": c2.shape[-2:], "mode": "bilinear", "align_corners": self.align_corners}
        wide = F.interpolate(self.post(self.aspp(c5)), **how)
        logits = {"out": self.classifier(torch.cat([self.low_level(c2), wide], 1))}
        if self.training and self.aux_classifier is not None:
            logits["aux"] = self.aux_classifier(c4)
        return logits
