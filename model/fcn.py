"""FCN on a dilated ResNet (Long et al., arXiv 1411.4038; the form and head of torchvision)."""

from collections.abc import Mapping

import torch
from torch import nn

from model.encoders import build_encoder
from model.layers import Norm, conv_norm_relu, fcn_head, set_norm
from model.resnet import Contract


class FCN(nn.Module):
    """Dilated ResNet -> 3x3 -> classes. state_dict keys are torchvision's."""

    task = "semantic"

    def __init__(
        self,
        *,
        num_classes: int,
        backbone: str = "resnet18",
        output_stride: int = 8,
        norm: Norm = "bn",
        multi_grid: tuple[int, ...] = (1, 1, 1),
        aux: bool = False,
        backbone_weights: Mapping[str, torch.Tensor] | None = None,
        # Only for converted checkpoints (model/convert/):
        contract: Contract | None = None,
        concat: bool = False,
    ) -> None:
        """concat: mmsegmentation's head instead of torchvision's. Checkpoints store all options."""
        super().__init__()
        self.backbone = build_encoder(
            backbone,
            output_stride=output_stride,
            multi_grid=multi_grid,
            contract=contract,
            norm=norm,
            weights=backbone_weights,
        )
        *_, c4, c5 = self.backbone.channels
        self.classifier = (ConcatHead if concat else fcn_head)(c5, num_classes)
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


class ConcatHead(nn.Module):
    """mmsegmentation's FCN head: two 3x3, then a third with the head's input beside -> classes."""

    def __init__(self, inputs: int, num_classes: int) -> None:
        super().__init__()
        width = inputs // 4
        first, second = conv_norm_relu(inputs, width, 3), conv_norm_relu(width, width, 3)
        self.convs = nn.Sequential(*first, *second)
        merge = conv_norm_relu(inputs + width, width, 3)
        self.merge = nn.Sequential(*merge, nn.Dropout2d(0.1), nn.Conv2d(width, num_classes, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N,C,h,w) -> (N,K,h,w)."""
        return self.merge(torch.cat([x, self.convs(x)], 1))
