"""Segmentation networks: `model(images) -> {"out": logits at the model's own stride}`."""

from typing import Any

from torch import nn

from model.deeplabv3 import DeepLabV3
from model.resnet import BACKBONES

__all__ = ["BACKBONES", "MODELS", "build_model"]

MODELS: dict[str, type[nn.Module]] = {
    "deeplabv3": DeepLabV3,
}


def build_model(name: str, **options: Any) -> nn.Module:
    """MODELS[name] with that class's constructor options; ValueError lists the names."""
    if name not in MODELS:
        raise ValueError(f"no model {name!r}; have {list(MODELS)}")
    return MODELS[name](**options)
