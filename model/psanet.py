"""PSANet (Zhao et al., "Point-wise Spatial Attention Network", ECCV 2018).

Every position of the map predicts weights for the positions around it. It collects their features
with these weights, and distributes its own feature to them.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from model.encoders import build_encoder
from model.layers import Norm, conv_norm_relu, set_norm
from model.pspnet import psp_head
from model.resnet import Contract

Attention = Literal["both", "collect", "distribute"]


class PointwiseAttention(nn.Module):
    """Reduced features -> collected or distributed features, at half of the map's resolution."""

    def __init__(self, inputs: int, *, mask: tuple[int, int], collect: bool) -> None:
        super().__init__()
        self.mask, self.collect = mask, collect
        self.reduce = nn.Sequential(*conv_norm_relu(inputs, 512))
        self.attention = nn.Sequential(
            *conv_norm_relu(512, 512), nn.Conv2d(512, mask[0] * mask[1], 1, bias=False)
        )

    def forward(self, x: torch.Tensor, align_corners: bool) -> torch.Tensor:
        """(N,C,h,w) -> (N,512,h',w'), h' = (h - 1) // 2 + 1, w' alike (section 3.4)."""
        size = [(length - 1) // 2 + 1 for length in x.shape[-2:]]
        how = {"size": size, "mode": "bilinear", "align_corners": align_corners}
        x = F.interpolate(self.reduce(x), **how)
        pairs = relative(self.attention(x), self.mask)
        # Position p collects from q with weights that add up to 1 over q; what q gets from all p
        # has weights that add up to 1 over p.
        weights = pairs.softmax(2).transpose(1, 2) if self.collect else pairs.softmax(1)
        flat = x.flatten(2) @ weights.to(x.dtype)
        return flat.view(x.shape).contiguous(memory_format=torch.channels_last)


class PSANet(nn.Module):
    """Dilated ResNet -> point-wise attention beside the features -> 3x3 -> classes (figure 2)."""

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
        attention: Attention = "both",
        backbone_weights: Mapping[str, torch.Tensor] | None = None,
        mask: tuple[int, int] = (59, 59),
        # Only for converted checkpoints (model/convert/):
        contract: Contract | None = None,
        stem: tuple[int, int, int] | None = None,
        align_corners: bool = False,
    ) -> None:
        """mask: odd height and width of the window that attention reaches, at half of the map's
        resolution. Positions outside it have the logit 0, as in the authors' code.
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
        kinds = ("collect", "distribute") if attention == "both" else (attention,)
        self.align_corners = align_corners
        self.branches = nn.ModuleList(
            PointwiseAttention(c5, mask=tuple(mask), collect=kind == "collect") for kind in kinds
        )
        self.project = nn.Sequential(*conv_norm_relu(512 * len(kinds), c5))
        self.classifier = nn.Sequential(*psp_head(2 * c5, 512, num_classes))
        self.aux_classifier = nn.Sequential(*psp_head(c4, 256, num_classes)) if aux else None
        heads = (self.branches, self.project, self.classifier, self.aux_classifier)
        for head in filter(None, heads):
            set_norm(head, norm)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """(N,3,H,W) normalized -> {"out": (N,K,H/s,W/s) logits}; in training, "aux" from layer3."""
        *_, c4, c5 = self.backbone(images)
        around = torch.cat([branch(c5, self.align_corners) for branch in self.branches], 1)
        how = {"size": c5.shape[-2:], "mode": "bilinear", "align_corners": self.align_corners}
        wide = F.interpolate(self.project(around), **how)
        logits = {"out": self.classifier(torch.cat([c5, wide], 1))}
        if self.training and self.aux_classifier is not None:
            logits["aux"] = self.aux_classifier(c4)
        return logits


def relative(logits: torch.Tensor, mask: tuple[int, int]) -> torch.Tensor:
    """(N,MH*MW,h,w) -> (N,hw,hw): what position p says of position q.

    Channel (dy, dx) at p is the logit of the position at p + (dy - MH // 2, dx - MW // 2).
    """
    count, _, height, width = logits.shape
    rows, columns = (full - 1 - size // 2 for full, size in zip((height, width), mask, strict=True))
    # To the window that reaches every position from every other; negative padding crops.
    logits = logits.view(count, *mask, height, width)
    logits = F.pad(logits, (0, 0, 0, 0, columns, columns, rows, rows)).flatten(1, 2)
    spoken = logits.flatten(2).transpose(1, 2)
    return spoken.gather(2, offsets(height, width, logits.device).expand(count, -1, -1))


def offsets(height: int, width: int, device: torch.device) -> torch.Tensor:
    """(hw,hw): number of the channel of `relative` that belongs to positions p and q. Computed each
    time: a CUDA graph must not read a tensor from outside it that may be freed."""
    down = torch.arange(height, device=device)
    right = torch.arange(width, device=device)
    rows = down[None] - down[:, None] + height - 1
    columns = right[None] - right[:, None] + width - 1
    index = rows[:, None, :, None] * (2 * width - 1) + columns[None, :, None, :]
    return index.reshape(height * width, -1)
