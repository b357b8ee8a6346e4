"""U-Net (Ronneberger et al., arXiv 1505.04597), with padded convolutions and BatchNorm."""

import torch
from torch import nn
from torch.nn import functional as F

from model.layers import Norm, conv_norm_relu, set_norm

WIDTHS = (64, 128, 256, 512, 1024)  # channels at strides 1, 2, 4, 8, 16: figure 1


class UNet(nn.Module):
    """Contracting path -> expanding path with skip connections -> classes, at stride 1.

    Padded convolutions keep the size; the paper's unpadded ones lose the border. Not pretrained.
    """

    task = "semantic"
    smallest_image = 16  # four poolings

    def __init__(self, *, num_classes: int, norm: Norm = "bn") -> None:
        """Checkpoints store all options."""
        super().__init__()
        self.down = nn.ModuleList(map(two_convolutions, (3, *WIDTHS[:-1]), WIDTHS))
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(2 * width, width, 2, stride=2) for width in WIDTHS[:-1]
        )
        self.merge = nn.ModuleList(two_convolutions(2 * width, width) for width in WIDTHS[:-1])
        self.classifier = nn.Conv2d(WIDTHS[0], num_classes, 1)
        set_norm(self, norm)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """(N,3,H,W), H and W at least 16 -> {"out": (N,K,H,W) logits}."""
        features = [self.down[0](images)]
        for convolutions in self.down[1:]:
            features.append(convolutions(F.max_pool2d(features[-1], 2)))
        x = features.pop()
        while features:  # from stride 8 to stride 1
            skip, stage = features.pop(), len(features)
            x = self.up[stage](x)
            height, width = (s - u for s, u in zip(skip.shape[2:], x.shape[2:], strict=True))
            x = F.pad(x, (0, width, 0, height))  # adds a row or column if the size was odd
            x = self.merge[stage](torch.cat([skip, x], 1))
        return {"out": self.classifier(x)}


def two_convolutions(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(*conv_norm_relu(inputs, outputs, 3), *conv_norm_relu(outputs, outputs, 3))
