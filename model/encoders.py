"""Encoders by name; each class has `channels`, those of its features, and `weight_file`.

An architecture takes those in its attribute `encoders`, by default the ResNets.
"""

from typing import Any

from torch import nn

from model.efficientnet import EFFICIENTNETS, EfficientNet
from model.resnet import RESNETS, ResNet
from model.vgg import VGG, VGGS

ENCODERS: dict[str, type[nn.Module]] = {
    **dict.fromkeys(RESNETS, ResNet),
    **dict.fromkeys(VGGS, VGG),
    **dict.fromkeys(EFFICIENTNETS, EfficientNet),
}


def build_encoder(name: str, **options: Any) -> nn.Module:
    """ENCODERS[name](name, **options); the ValueError for an unknown name lists all names."""
    if name not in ENCODERS:
        raise ValueError(f"no backbone {name!r}. Give one of: {', '.join(ENCODERS)}")
    return ENCODERS[name](name, **options)
