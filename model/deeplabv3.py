"""DeepLabV3 (Chen et al., "Rethinking Atrous Convolution", arXiv 1706.05587)."""

from collections.abc import Mapping

import torch
from torch import nn

from model.aspp import ASPP
from model.encoders import build_encoder
from model.layers import Norm, conv_norm_relu, fcn_head, set_norm
from model.resnet import Contract

ATROUS_RATES = {8: (12, 24, 36), 16: (6, 12, 18), 32: (3, 6, 9)}  # section 3.3: doubled at OS8


class DeepLabV3(nn.Module):
    """Dilated ResNet -> ASPP -> 3x3 -> classes. state_dict keys are torchvision's."""

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
        atrous_rates: tuple[int, ...] | None = None,
        aux: bool = False,
        backbone_weights: Mapping[str, torch.Tensor] | None = None,
        dropout: float = 0.1,
        # Only for converted checkpoints (model/convert/):
        contract: Contract | None = None,
        stem: tuple[int, int, int] | None = None,
        head_channels: int = 256,
        project_kernel: int = 1,
        post_conv: bool = True,
    ) -> None:
        """post_conv: add a 3x3 convolution after the ASPP, as torchvision but not the paper does.

        Checkpoints store all options.
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
        *_, c4, c5 = self.backbone.channels
        width = head_channels
        aspp = ASPP(
            c5,
            atrous_rates=atrous_rates or ATROUS_RATES[output_stride],
            channels=width,
            project_kernel=project_kernel,
            dropout=dropout,
        )
        post = conv_norm_relu(width, width, 3) if post_conv else [nn.Identity() for _ in range(3)]
        self.classifier = nn.Sequential(aspp, *post, nn.Conv2d(width, num_classes, 1))
        self.aux_classifier = fcn_head(c4, num_classes) if aux else None
        for head in filter(None, (self.classifier, self.aux_classifier)):
            set_norm(head, norm)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """(N,3,H,W) normalized -> {"out": (N,K,H/s,W/s) logits}; in training, "aux" from layer3."""
        *_, c4, c5 = self.backbone(images)
        logits = {"out": self.classifier(c5)}
        if self.training and self.aux_classifier is not None:
            logits["aux"] = self.aux_classifier(c4)
        return logits
