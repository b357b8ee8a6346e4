"""DeepLabV3 of torchvision, VainF, fregu856, chenxi116, mmsegmentation and SMP."""

import re
from typing import Any

from model.convert.source import (
    MMSEG,
    Rules,
    Source,
    Weights,
    adapt_mmseg,
    block,
    mmseg_block,
    pooling_last,
)

CITYSCAPES_IMAGE, VOC_CROP = (1025, 2049), (513, 513)  # sizes that chenxi116 pads images to
LAST = "classifier.4"
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
MMSEG_V3: Rules = (
    *MMSEG,
    *mmseg_block(r"decode_head\.aspp_modules\.(\d)", rf"{CONVS}.\1"),
    *mmseg_block(r"decode_head\.image_pool\.1", f"{CONVS}.4", 1),
    *mmseg_block(r"decode_head\.bottleneck", PROJECT),
    (r"^decode_head\.conv_seg\.", "classifier.4."),
)
SMP: Rules = (
    (r"^encoder\.", "backbone."),
    (r"^decoder\.(aspp|0)\.", f"{ASPP_KEY}."),
    (r"^decoder\.(conv|1)\.", "classifier.1."),
    (r"^decoder\.(bn|2)\.", "classifier.2."),
    (r"^segmentation_head\.0\.", "classifier.4."),
)


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
    network["head_channels"] = pooling_last(weights, PROJECT)
    adapt_mmseg(weights, network)


AS_FREGU856 = {
    "compat": {"bgr": True, "resize": [512, 1024]},
    "adapt": fold_biases,
}
FREGU856_NETWORK = {"contract": False, "atrous_rates": [6, 12, 18], "post_conv": False}
AS_SMP = {
    "network": {"contract": False, "atrous_rates": [12, 24, 36]},
    "compat": {"align_corners": True},
}


def source(name: str, marker: str, rules: Rules, **how: Any) -> Source:
    return Source(name, marker, rules, "deeplabv3", LAST, **how)


SOURCES = (
    source("torchvision", "classifier.0.convs.0.0.weight", ()),
    source(
        "VainF", "classifier.classifier.0.convs.0.0.weight",
        ((r"^classifier\.classifier\.", "classifier."),), network={"output_stride": 16},
    ),
    source(
        "fregu856", "resnet.layer4.0.conv1.weight", FREGU856, network=FREGU856_NETWORK,
        **AS_FREGU856,
    ),
    source(
        "fregu856", "resnet.layer5.0.conv1.weight", FREGU856,
        network={"output_stride": 16, **FREGU856_NETWORK}, **AS_FREGU856,
    ),
    source(
        "chenxi116", "aspp.aspp1.weight", CHENXI116, compat={"align_corners": True},
        network={"output_stride": 16, "post_conv": False}, adapt=pad_as_chenxi116,
    ),
    source(
        "mmsegmentation", "decode_head.aspp_modules.0.conv.weight", MMSEG_V3,
        needed=(f"{PROJECT}.0.weight",), network={"project_kernel": 3, "post_conv": False},
        adapt=reorder_as_mmseg,
    ),
    source("segmentation_models_pytorch", "decoder.aspp.convs.0.0.weight", SMP, **AS_SMP),
    source("segmentation_models_pytorch", "decoder.0.convs.0.0.weight", SMP, **AS_SMP),
)  # fmt: skip
