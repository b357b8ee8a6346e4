"""Segmentation networks: `model(images) -> {"out": logits at the model's own stride}`."""

from typing import Any

from torch import nn

from model.compat import Compat
from model.deeplabv3 import DeepLabV3
from model.resnet import BACKBONES

__all__ = ["BACKBONES", "MODELS", "build_model"]

MODELS: dict[str, type[nn.Module]] = {
    "deeplabv3": DeepLabV3,
}


def build_model(name: str, *, compat: dict[str, Any] | None = None, **options: Any) -> nn.Module:
    """MODELS[name] with that class's constructor options; ValueError lists the names.

    compat: options of Compat, through which the network of another project is seen.
    """
    if name not in MODELS:
        raise ValueError(f"no model {name!r}; have {list(MODELS)}")
    network = MODELS[name](**options)
    return network if compat is None else Compat(network, **compat)
