"""Convert checkpoints of other projects, recognized by their keys, to this project's networks.

The rules only map names of weights in the projects' published files. tests/model/test_convert.py
reimplements the network of each project and compares logits.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isqrt
from typing import Any

import torch

from model import build_model

Weights = dict[str, torch.Tensor]
Rules = tuple[tuple[str, str], ...]  # regular expressions and their replacements, in order
CITYSCAPES_IMAGE, VOC_CROP = (1025, 2049), (513, 513)  # sizes that chenxi116 pads images to
BLOCKS = {  # blocks of layer1 to layer4, whether they are bottlenecks
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}


@dataclass(frozen=True)
class Converted:
    """Another project's checkpoint, converted to a network of this project."""

    source: str
    network: dict[str, Any]  # build_model's options
    weights: Weights  # its state_dict


@dataclass(frozen=True)
class Source:
    """How another project names a network's weights, and which options reproduce the network."""

    name: str
    marker: str  # a key that no other project has
    rules: Rules
    model: str = "deeplabv3"
    last: str = "classifier.4"  # the layer that gives the class scores
    needed: tuple[str, ...] = ()  # keys that `adapt` reads
    stride: int = 8  # default output stride
    network: dict[str, Any] = field(default_factory=dict)
    compat: dict[str, Any] = field(default_factory=dict)
    adapt: Callable[[Weights, dict[str, Any]], None] | None = None  # changes both in place


def convert(
    content: Any, *, output_stride: int | None = None, align_corners: bool | None = None
) -> Converted:
    """Content of a checkpoint file -> converted network; ValueError for an unknown project.

    output_stride, align_corners: as in its training, if the project's checkpoints differ in them.
    """
    tensors = unwrap(content)
    source = next((source for source in SOURCES if source.marker in tensors), None)
    if source is None:
        known = ", ".join(dict.fromkeys(x.name for x in SOURCES))
        raise ValueError(
            f"keys {', '.join(sorted(tensors)[:3])}, ... match no known project ({known})"
        )
    weights = {rename(key, source.rules): value for key, value in tensors.items()}
    tracked = {  # checkpoints of torch 0.4 lack num_batches_tracked
        key.replace("running_mean", "num_batches_tracked"): torch.tensor(0)
        for key in weights
        if key.endswith("running_mean")
    }
    weights = tracked | weights
    network = {
        "name": source.model,
        "backbone": backbone_of(weights, source.name),
        "output_stride": source.stride,
        "aux": "aux_classifier.0.weight" in weights,
        **source.network,
    }
    compat = dict(source.compat)
    for key in (f"{source.last}.weight", f"{source.last}.bias", *source.needed):
        if key not in weights:
            raise ValueError(f"like {source.name}'s, but lacks {key}")
    if source.adapt is not None:
        source.adapt(weights, network)
        compat |= network.pop("compat", {})
    if output_stride is not None:
        network["output_stride"] = output_stride
    if align_corners is not None:
        compat["align_corners"] = align_corners
    network["num_classes"] = len(weights[f"{source.last}.bias"])
    require_same_keys(weights, network, source.name)
    if any(compat.values()):
        network["compat"] = compat
        weights = {f"network.{key}": value for key, value in weights.items()}
    return Converted(source.name, network, weights)


def renamed(content: Any) -> Weights:
    """Tensors of another project's checkpoint under this project's names; else unchanged."""
    try:
        return convert(content).weights
    except ValueError:
        return unwrap(content)


def unwrap(content: Any) -> Weights:
    """The state_dict in a checkpoint of any usual layout, without the "module." prefix of DDP."""
    for name in ("state_dict", "model_state", "model_state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, Mapping):
        raise ValueError("holds no state_dict")
    return {
        str(key).removeprefix("module."): value
        for key, value in content.items()
        if isinstance(value, torch.Tensor)
    }


def rename(key: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def backbone_of(weights: Weights, source: str) -> str:
    places = [re.match(r"backbone\.layer(\d)\.(\d+)\.", key) for key in weights]
    found = {(int(place[1]), int(place[2])) for place in places if place}
    counts = tuple(sum(layer == number for layer, _ in found) for number in (1, 2, 3, 4))
    bottleneck = "backbone.layer1.0.conv3.weight" in weights
    if (counts, bottleneck) not in BLOCKS:
        raise ValueError(f"{source}: no ResNet has {counts} blocks")
    return BLOCKS[counts, bottleneck]


def require_same_keys(weights: Weights, network: dict[str, Any], source: str) -> None:
    """ValueError with the first keys and shapes that differ from the network's."""
    with torch.device("meta"):
        own = build_model(**network).state_dict()
    missing = [key for key in own if key not in weights]
    unknown = [key for key in weights if key not in own]
    wrong = [key for key in own if key in weights and own[key].shape != weights[key].shape]
    texts = [
        f"{what} {', '.join(keys[:3])}"
        for what, keys in (("lacks", missing), ("unknown", unknown), ("other shape:", wrong))
        if keys
    ]
    if texts:
        raise ValueError(f"like {source}'s, but {'; '.join(texts)}")


def fold_biases(weights: Weights, network: dict[str, Any]) -> None:
    """fregu856: move the biases of the ASPP's convolutions into the following running means."""
    for key in [key for key in weights if re.search(r"classifier\.0\..*\.bias", key)]:
        norm = re.sub(r"(\d)\.bias", lambda place: f"{int(place[1]) + 1}.running_mean", key)
        if norm in weights:
            weights[norm] = weights[norm] - weights.pop(key)


def pad_as_chenxi116(weights: Weights, network: dict[str, Any]) -> None:
    network["norm"] = "bn" if "backbone.bn1.running_mean" in weights else "gn_ws"
    classes = len(weights["classifier.4.bias"])
    network["compat"] = {"pad": CITYSCAPES_IMAGE if classes == 19 else VOC_CROP}


def reorder_as_mmseg(weights: Weights, network: dict[str, Any]) -> None:
    """mmsegmentation concatenates image pooling first, this project last; the stem may be deep."""
    width = weights["classifier.4.weight"].shape[1]
    network["head_channels"] = width
    weights["classifier.0.project.0.weight"] = weights["classifier.0.project.0.weight"].roll(
        -width, 1
    )
    adapt_backbone(weights, network)


def adapt_backbone(weights: Weights, network: dict[str, Any]) -> None:
    """mmsegmentation's dilation; the stem of any project, if it is deep."""
    network["contract"] = "conv1_only" if network["backbone"] in ("resnet18", "resnet34") else True
    set_stem(weights, network)


def set_stem(weights: Weights, network: dict[str, Any]) -> None:
    if "backbone.conv1.0.weight" in weights:
        network["stem"] = [len(weights[f"backbone.conv1.{place}.weight"]) for place in (0, 3, 6)]


def set_mask(weights: Weights, network: dict[str, Any]) -> None:
    """semseg's PSANet: the window is a square; one branch collects or distributes, or both do."""
    set_stem(weights, network)
    side = isqrt(len(weights["branches.0.attention.3.weight"]))
    network["mask"] = [side, side]
    if "branches.1.reduce.0.weight" not in weights:
        raise ValueError("PSANet with one of its branches: the file does not say which")


def block(conv: str, norm: str, place: str, number: int = 0) -> Rules:
    """Rules for a convolution and the BatchNorm after it in a Sequential."""
    return (rf"^{conv}\.", f"{place}.{number}."), (rf"^{norm}\.", f"{place}.{number + 1}.")


ASPP_KEY = "classifier.0"
CONVS, PROJECT = f"{ASPP_KEY}.convs", f"{ASPP_KEY}.project"
# Indices in fregu856's Sequential; at stride 8, layer3 is outside it, as resnet.layer4.
RESNET = {0: "conv1", 1: "bn1", 4: "layer1", 5: "layer2", 6: "layer3"}
FREGU856: Rules = (
    *((rf"^resnet\.resnet\.{place}\.", f"backbone.{part}.") for place, part in RESNET.items()),
    (r"^resnet\.layer4\.", "backbone.layer3."),
    (r"^resnet\.layer5\.", "backbone.layer4."),
    *block(r"aspp\.conv_1x1_1", r"aspp\.bn_conv_1x1_1", f"{CONVS}.0"),
    *block(r"aspp\.conv_3x3_(\d)", r"aspp\.bn_conv_3x3_(\d)", rf"{CONVS}.\1"),
    *block(r"aspp\.conv_1x1_2", r"aspp\.bn_conv_1x1_2", f"{CONVS}.4", 1),
    *block(r"aspp\.conv_1x1_3", r"aspp\.bn_conv_1x1_3", PROJECT),
    (r"^aspp\.conv_1x1_4\.", "classifier.4."),
)
CHENXI116: Rules = (
    (r"^(conv1|bn1|layer\d)\.", r"backbone.\1."),
    *block(r"aspp\.aspp1", r"aspp\.aspp1_bn", f"{CONVS}.0"),
    *block(r"aspp\.aspp2", r"aspp\.aspp2_bn", f"{CONVS}.1"),
    *block(r"aspp\.aspp3", r"aspp\.aspp3_bn", f"{CONVS}.2"),
    *block(r"aspp\.aspp4", r"aspp\.aspp4_bn", f"{CONVS}.3"),
    *block(r"aspp\.aspp5", r"aspp\.aspp5_bn", f"{CONVS}.4", 1),
    *block(r"aspp\.conv2", r"aspp\.bn2", PROJECT),
    (r"^aspp\.conv3\.", "classifier.4."),
)
MMSEG: Rules = (
    (r"^backbone\.stem\.7\.", "backbone.bn1."),
    (r"^backbone\.stem\.", "backbone.conv1."),
    *block(
        r"decode_head\.aspp_modules\.(\d)\.conv",
        r"decode_head\.aspp_modules\.(\d)\.bn",
        rf"{CONVS}.\1",
    ),
    *block(r"decode_head\.image_pool\.1\.conv", r"decode_head\.image_pool\.1\.bn", f"{CONVS}.4", 1),
    *block(r"decode_head\.bottleneck\.conv", r"decode_head\.bottleneck\.bn", PROJECT),
    *block(r"auxiliary_head\.convs\.0\.conv", r"auxiliary_head\.convs\.0\.bn", "aux_classifier"),
    (r"^decode_head\.conv_seg\.", "classifier.4."),
    (r"^auxiliary_head\.conv_seg\.", "aux_classifier.4."),
)
MMSEG_PSP: Rules = (
    *MMSEG[:2],
    *block(
        r"decode_head\.psp_modules\.(\d)\.1\.conv",
        r"decode_head\.psp_modules\.(\d)\.1\.bn",
        r"classifier.0.pools.\1",
        1,
    ),
    *block(r"decode_head\.bottleneck\.conv", r"decode_head\.bottleneck\.bn", "classifier", 1),
    *block(r"auxiliary_head\.convs\.0\.conv", r"auxiliary_head\.convs\.0\.bn", "aux_classifier"),
    (r"^decode_head\.conv_seg\.", "classifier.5."),
    (r"^auxiliary_head\.conv_seg\.", "aux_classifier.4."),
)
SEMSEG: Rules = (
    (r"^layer0\.7\.", "backbone.bn1."),
    (r"^layer0\.", "backbone.conv1."),
    (r"^(layer\d)\.", r"backbone.\1."),
    (r"^aux\.", "aux_classifier."),
)
SEMSEG_PSP: Rules = (
    *SEMSEG,
    (r"^ppm\.features\.", "classifier.0.pools."),
    *((rf"^cls\.{place}\.", f"classifier.{place + 1}.") for place in (0, 1, 4)),
)
SEMSEG_PSA: Rules = (
    *SEMSEG,
    (r"^psa\.(reduce|attention)\.", r"branches.0.\1."),
    (r"^psa\.(reduce|attention)_p\.", r"branches.1.\1."),
    (r"^psa\.proj\.", "project."),
    (r"^cls\.", "classifier."),
)
VAINF_PLUS: Rules = (
    (r"^classifier\.project\.", "low_level."),
    (r"^classifier\.aspp\.", "aspp."),
    (r"^classifier\.classifier\.", "classifier."),
)
SMP: Rules = (
    (r"^encoder\.", "backbone."),
    (r"^decoder\.(aspp|0)\.", f"{ASPP_KEY}."),
    (r"^decoder\.(conv|1)\.", "classifier.1."),
    (r"^decoder\.(bn|2)\.", "classifier.2."),
    (r"^segmentation_head\.0\.", "classifier.4."),
)
AS_FREGU856 = {
    "network": {"contract": False, "atrous_rates": [6, 12, 18], "post_conv": False},
    "compat": {"bgr": True, "resize": [512, 1024]},
    "adapt": fold_biases,
}
AS_SMP = {
    "network": {"contract": False, "atrous_rates": [12, 24, 36]},
    "compat": {"align_corners": True},
}
AS_SEMSEG = {
    "network": {"contract": False, "align_corners": True},
    "compat": {"align_corners": True},
}
SOURCES = (
    Source("torchvision", "classifier.0.convs.0.0.weight", ()),
    Source("torchvision", "classifier.0.weight", (), model="fcn"),
    Source(
        "VainF", "classifier.project.0.weight", VAINF_PLUS, model="deeplabv3plus",
        last="classifier.3", stride=16,
    ),
    Source(
        "semseg", "ppm.features.0.1.weight", SEMSEG_PSP, model="pspnet", last="classifier.5",
        adapt=set_stem, **AS_SEMSEG,
    ),
    Source(
        "semseg", "psa.reduce.0.weight", SEMSEG_PSA, model="psanet",
        needed=("branches.0.attention.3.weight",), adapt=set_mask, **AS_SEMSEG,
    ),
    Source(
        "mmsegmentation", "decode_head.psp_modules.0.1.conv.weight", MMSEG_PSP, model="pspnet",
        last="classifier.5", adapt=adapt_backbone,
    ),
    Source(
        "VainF",
        "classifier.classifier.0.convs.0.0.weight",
        ((r"^classifier\.classifier\.", "classifier."),),
        stride=16,
    ),
    Source("fregu856", "resnet.layer4.0.conv1.weight", FREGU856, **AS_FREGU856),
    Source("fregu856", "resnet.layer5.0.conv1.weight", FREGU856, stride=16, **AS_FREGU856),
    Source(
        "chenxi116",
        "aspp.aspp1.weight",
        CHENXI116,
        stride=16,
        network={"post_conv": False},
        compat={"align_corners": True},
        adapt=pad_as_chenxi116,
    ),
    Source(
        "mmsegmentation",
        "decode_head.aspp_modules.0.conv.weight",
        MMSEG,
        network={"project_kernel": 3, "post_conv": False},
        needed=(f"{PROJECT}.0.weight",),
        adapt=reorder_as_mmseg,
    ),
    Source("segmentation_models_pytorch", "decoder.aspp.convs.0.0.weight", SMP, **AS_SMP),
    Source("segmentation_models_pytorch", "decoder.0.convs.0.0.weight", SMP, **AS_SMP),
)  # fmt: skip
