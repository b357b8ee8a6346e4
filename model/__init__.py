"""Segmentation networks: `model(normalized images) -> {"out": logits at the model's stride}`, and
more maps of the same size for a panoptic network.

To add an architecture, write a file with its class and add it to MODELS. Checkpoints store the
keyword-only options of its constructor: never rename an option, and give new options a default.
"""

import inspect
from typing import Any

from torch import nn

from model.compat import Compat
from model.deconvnet import DeconvNet
from model.deeplabv3 import DeepLabV3
from model.deeplabv3plus import DeepLabV3Plus
from model.fcn import FCN
from model.fcn_vgg import FCN8s, FCN16s, FCN32s
from model.fpn import FPN
from model.panoptic.panoptic_deeplab import PanopticDeepLab
from model.panoptic.upsnet import UPSNet
from model.psanet import PSANet
from model.pspnet import PSPNet
from model.resnet import RESNETS
from model.segnet import SegNet
from model.unet import UNet

MODELS: dict[str, type[nn.Module]] = {
    "deeplabv3": DeepLabV3,
    "deeplabv3plus": DeepLabV3Plus,
    "fcn": FCN,
    "fcn32s": FCN32s,
    "fcn16s": FCN16s,
    "fcn8s": FCN8s,
    "fpn": FPN,
    "psanet": PSANet,
    "pspnet": PSPNet,
    "segnet": SegNet,
    "deconvnet": DeconvNet,
    "unet": UNet,
    "panoptic_deeplab": PanopticDeepLab,
    "upsnet": UPSNet,
}


def model_class(name: str) -> type[nn.Module]:
    """MODELS[name]; the ValueError for an unknown name lists all names."""
    if name not in MODELS:
        raise ValueError(f"no model {name!r}. Give one of: {', '.join(MODELS)}")
    return MODELS[name]


def option_names(name: str) -> set[str]:
    """The options that the constructor of MODELS[name] takes."""
    return set(inspect.signature(model_class(name).__init__).parameters) - {"self"}


def encoders_of(name: str) -> tuple[str, ...]:
    """The encoders that MODELS[name] takes; the first one is its default."""
    return getattr(model_class(name), "encoders", RESNETS)


def build_model(name: str, *, compat: dict[str, Any] | None = None, **options: Any) -> nn.Module:
    """MODELS[name](**options); the ValueError for an unknown name lists all names.

    compat: options of Compat, which wraps a network converted from another project.
    """
    network = model_class(name)(**options)
    return network if compat is None else Compat(network, **compat)


def at_output_stride(network: dict[str, Any], output_stride: int) -> dict[str, Any]:
    """build_model's options for another output stride; ValueError if the network has none.

    Dilations change with it, and so do atrous rates stored in `network` (converted checkpoints).
    """
    if "output_stride" not in option_names(network["name"]):
        raise ValueError(f"{network['name']} has no option output_stride")
    changed = network | {"output_stride": output_stride}
    if network.get("atrous_rates"):
        scale = network["output_stride"] / output_stride
        changed["atrous_rates"] = [max(1, int(x * scale)) for x in network["atrous_rates"]]
    return changed


def describe(network: dict[str, Any]) -> list[str]:
    """Short description of a network for names and tables: ["deeplabv3", "resnet18", "os8"]."""
    words = [network[key] for key in ("name", "backbone") if key in network]
    if "output_stride" in network:
        words.append(f"os{network['output_stride']}")
    return words
