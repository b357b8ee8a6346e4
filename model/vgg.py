"""VGG-16 (Simonyan and Zisserman, arXiv 1409.1556) as an encoder, with and without BatchNorm."""

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional as F

from model.layers import Norm, set_norm
from model.resnet import WeightFile, torchvision_file

VGGS = ("vgg16", "vgg16_bn")


class VGG(nn.Module):
    """Features after each of the five poolings. state_dict keys are torchvision's."""

    channels = (64, 128, 256, 512, 512)

    def __init__(
        self,
        name: str = "vgg16",
        *,
        norm: Norm = "bn",
        weights: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """weights: a VGG state_dict; entries of its classifier are ignored."""
        from torchvision.models import vgg  # takes seconds, which would slow down --help

        super().__init__()
        self.features = vgg.make_layers(vgg.cfgs["D"], batch_norm=name.endswith("_bn"))
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)
        set_norm(self, norm)
        if weights is not None:
            kept = {key: x for key, x in weights.items() if key.startswith("features.")}
            self.load_state_dict(kept)

    @staticmethod
    def weight_file(name: str, norm: Norm) -> WeightFile:
        """torchvision's ImageNet weights."""
        return torchvision_file(name)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """(N,3,H,W) -> [(N,64,H/2,W/2), ..., (N,512,H/32,W/32)]."""
        return [pooled for pooled, _, _ in self.pooled(images)]

    def pooled(self, images: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor, torch.Size]]:
        """After each pooling: features, places of the maxima, size before (section 2.1)."""
        found, x = [], images
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                size = x.shape[-2:]
                x, places = F.max_pool2d(x, 2, return_indices=True)
                found.append((x, places, size))
            else:
                x = layer(x)
        return found


def unpool(x: torch.Tensor, places: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """Features to the places of the maxima of a pooling, zeros elsewhere."""
    wide = F.max_unpool2d(x, places, 2, output_size=size)
    return wide.contiguous(memory_format=torch.channels_last)
