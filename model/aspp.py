"""Atrous spatial pyramid pooling (DeepLabV3, arXiv 1706.05587, section 3.3 and figure 5)."""

import torch
from torch import nn

from model.layers import Separable, conv_norm_relu


class ImagePooling(nn.Sequential):
    """Global average -> 1x1 -> expanded over the map. BatchNorm needs N >= 2 here in training."""

    def __init__(self, inputs: int, outputs: int, *, norm: bool = True) -> None:
        conv, batch_norm, relu = conv_norm_relu(inputs, outputs)
        super().__init__(nn.AdaptiveAvgPool2d(1), conv, *[batch_norm] * norm, relu)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N,C,h,w) -> (N,C',h,w), constant over h and w."""
        spread = super().forward(x).expand(-1, -1, *x.shape[-2:])
        # With the view's strides, torch.cat would return NCHW instead of channels_last.
        return spread.contiguous(memory_format=torch.channels_last)


class ASPP(nn.Module):
    """Parallel 1x1, three dilated 3x3 and image pooling, concatenated and projected."""

    def __init__(
        self,
        inputs: int,
        *,
        atrous_rates: tuple[int, ...],
        channels: int = 256,
        project_kernel: int = 1,
        dropout: float = 0.1,
        separable: Separable = False,
        pool_norm: bool = True,
    ) -> None:
        """separable: the 3x3 convolutions, see conv_norm_relu. pool_norm: BatchNorm after image
        pooling."""
        super().__init__()
        atrous = [
            nn.Sequential(*conv_norm_relu(inputs, channels, 3, rate, separable=separable))
            for rate in atrous_rates
        ]
        self.convs = nn.ModuleList(
            [
                nn.Sequential(*conv_norm_relu(inputs, channels)),
                *atrous,
                ImagePooling(inputs, channels, norm=pool_norm),
            ]
        )
        self.project = nn.Sequential(
            *conv_norm_relu(channels * len(self.convs), channels, project_kernel),
            nn.Dropout(dropout),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N,C,h,w) -> (N,channels,h,w)."""
        return self.project(torch.cat([conv(x) for conv in self.convs], dim=1))
