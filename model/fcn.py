"""FCN on a dilated ResNet (Long et al., arXiv 1411.4038; the form and head of torchvision)."""

from collections.abc import Mapping

import torch
from torch import nn

from model.encoders import build_encoder
from model.layers import Norm, fcn_head, set_norm
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
        contract: Contract | None = None,  # only for converted checkpoints (model/convert.py)
    ) -> None:
        """Checkpoints store all options."""
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
        self.classifier = fcn_head(c5, num_classes)
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
