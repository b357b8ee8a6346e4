"""EfficientNet-B0 (Tan and Le, arXiv 1905.11946) as an encoder."""

from collections.abc import Mapping

import torch
from torch import nn

from model.layers import Norm, set_norm
from model.resnet import WeightFile, torchvision_file

EFFICIENTNETS = ("efficientnet_b0",)
ENDS = (2, 3, 5, 7)  # the last parts of torchvision's `features` at strides 4, 8, 16 and 32


class EfficientNet(nn.Module):
    """Features at strides 4 to 32. state_dict keys are torchvision's."""

    channels = (24, 40, 112, 320)  # table 1

    def __init__(
        self,
        name: str,
        *,
        output_stride: int = 32,
        norm: Norm = "bn",
        weights: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """weights: an EfficientNet state_dict; entries behind stride 32 are ignored."""
        import torchvision  # takes seconds, which would slow down --help and option errors

        if output_stride != 32:
            raise ValueError(f"{name} has no output stride but 32, got {output_stride}")
        super().__init__()
        self.features = torchvision.models.get_model(name, weights=None).features[: ENDS[-1] + 1]
        set_norm(self, norm)
        if weights is not None:
            self.load_state_dict({key: weights[key] for key in self.state_dict()})

    @staticmethod
    def weight_file(name: str, norm: Norm) -> WeightFile:
        """torchvision's ImageNet weights."""
        return torchvision_file(name)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """(N,3,H,W) -> [(N,24,H/4,W/4), ..., (N,320,H/32,W/32)]."""
        x, found = images, []
        for number, part in enumerate(self.features):
            x = part(x)
            if number in ENDS:
                found.append(x)
        return found
