"""PSPNet (Zhao et al., "Pyramid Scene Parsing Network", arXiv 1612.01105)."""

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional as F

from model.encoders import build_encoder
from model.layers import Norm, conv_norm_relu, set_norm
from model.resnet import Contract

BINS = (1, 2, 3, 6)  # section 3.2


class PyramidPooling(nn.Module):
    """Averages over 1, 4, 9 and 36 regions, each to a quarter of the channels, beside the input."""

    def __init__(self, inputs: int, *, align_corners: bool = False) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.pools = nn.ModuleList(
            nn.Sequential(RegionMeans(bins), *conv_norm_relu(inputs, inputs // len(BINS)))
            for bins in BINS
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N,C,h,w) -> (N,2C,h,w). BatchNorm needs N >= 2 in training, for the single region."""
        how = {"size": x.shape[-2:], "mode": "bilinear", "align_corners": self.align_corners}
        wide = (F.interpolate(pool(x), **how) for pool in self.pools)
        # What comes from a single region has the layout of NCHW.
        layout = {"memory_format": torch.channels_last}
        return torch.cat([x, *(part.contiguous(**layout) for part in wide)], 1)


class RegionMeans(nn.AdaptiveAvgPool2d):
    """AdaptiveAvgPool2d; exported as two matrix products, because ONNX has no such pooling."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N,C,h,w) -> (N,C,bins,bins)."""
        if not torch.compiler.is_exporting():
            return super().forward(x)
        rows, columns = (mean_matrix(length, self.output_size, x) for length in x.shape[-2:])
        return rows @ x @ columns.T


def mean_matrix(length: int, bins: int, like: torch.Tensor) -> torch.Tensor:
    """(bins,length): region n goes from floor(n length / bins) to ceil((n + 1) length / bins)."""
    number = torch.arange(bins, device=like.device)[:, None]
    place = torch.arange(length, device=like.device)
    first, behind = number * length // bins, ((number + 1) * length + bins - 1) // bins
    inside = ((place >= first) & (place < behind)).to(like.dtype)
    return inside / inside.sum(1, keepdim=True)


class PSPNet(nn.Module):
    """Dilated ResNet -> pyramid pooling -> 3x3 -> classes (figure 3)."""

    task = "semantic"
    smallest_batch = 2  # BatchNorm has one value per image where the pyramid has one region

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
        stem: tuple[int, int, int] | None = None,
        align_corners: bool = False,
        head_channels: int = 512,
        aux_channels: int = 256,
    ) -> None:
        """align_corners: of the upsampling in the pyramid. Checkpoints store all options."""
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
        pyramid = PyramidPooling(c5, align_corners=align_corners)
        self.classifier = nn.Sequential(pyramid, *psp_head(2 * c5, head_channels, num_classes))
        self.aux_classifier = None
        if aux:
            self.aux_classifier = nn.Sequential(*psp_head(c4, aux_channels, num_classes))
        for head in filter(None, (self.classifier, self.aux_classifier)):
            set_norm(head, norm)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """(N,3,H,W) normalized -> {"out": (N,K,H/s,W/s) logits}; in training, "aux" from layer3."""
        *_, c4, c5 = self.backbone(images)
        logits = {"out": self.classifier(c5)}
        if self.training and self.aux_classifier is not None:
            logits["aux"] = self.aux_classifier(c4)
        return logits


def psp_head(inputs: int, width: int, num_classes: int) -> list[nn.Module]:
    """3x3 -> dropout 0.1 of whole channels -> classes, as in the authors' code."""
    head = conv_norm_relu(inputs, width, 3)
    return [*head, nn.Dropout2d(0.1), nn.Conv2d(width, num_classes, 1)]
