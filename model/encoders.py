"""Encoders by name: each class knows its features (`channels`) and its `weight_file`."""

from typing import Any

from torch import nn

from model.resnet import RESNETS, ResNet

ENCODERS: dict[str, type[nn.Module]] = dict.fromkeys(RESNETS, ResNet)


def build_encoder(name: str, **options: Any) -> nn.Module:
    """ENCODERS[name] with that class's options; ValueError lists the names."""
    if name not in ENCODERS:
        raise ValueError(f"no backbone {name!r}; have {', '.join(ENCODERS)}")
    return ENCODERS[name](name, **options)
