"""How a table of model/convert/ describes another project's networks, and what the tables share."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from model.resnet import STEM, VARIANTS

Weights = dict[str, torch.Tensor]
Rules = tuple[tuple[str, str], ...]  # regular expressions and their replacements, in order


@dataclass(frozen=True)
class Source:
    """How another project names a network's weights, and which options reproduce the network."""

    name: str
    marker: str  # a key that no other network has
    rules: Rules
    model: str
    last: str  # the layer that gives the class scores
    needed: tuple[str, ...] = ()  # keys that `adapt` reads
    network: dict[str, Any] = field(default_factory=dict)  # options of build_model
    compat: dict[str, Any] = field(default_factory=dict)
    adapt: Callable[[Weights, dict[str, Any]], None] | None = None  # changes both in place


def block(conv: str, norm: str, place: str, number: int = 0) -> Rules:
    """Rules for a convolution and the BatchNorm after it in a Sequential."""
    return (rf"^{conv}\.", f"{place}.{number}."), (rf"^{norm}\.", f"{place}.{number + 1}.")


def mmseg_block(theirs: str, place: str, number: int = 0) -> Rules:
    """Rules for mmsegmentation's convolution with BatchNorm."""
    return block(rf"{theirs}\.conv", rf"{theirs}\.bn", place, number)


def mmseg_separable(theirs: str, place: str, number: int = 0) -> Rules:
    """Rules for mmsegmentation's depthwise separable convolution."""
    return (
        *mmseg_block(rf"{theirs}\.depthwise_conv", place, number),
        *mmseg_block(rf"{theirs}\.pointwise_conv", place, number + 3),
    )


MMSEG: Rules = (
    (r"^backbone\.stem\.7\.", "backbone.bn1."),
    (r"^backbone\.stem\.", "backbone.conv1."),
    *mmseg_block(r"auxiliary_head\.convs\.0", "aux_classifier"),
    (r"^auxiliary_head\.conv_seg\.", "aux_classifier.4."),
)
SEMSEG: Rules = (
    (r"^layer0\.7\.", "backbone.bn1."),
    (r"^layer0\.", "backbone.conv1."),
    (r"^(layer\d)\.", r"backbone.\1."),
    (r"^aux\.", "aux_classifier."),
)
AS_SEMSEG = {
    "network": {"contract": False, "align_corners": True},
    "compat": {"align_corners": True},
}


def set_stem(weights: Weights, network: dict[str, Any]) -> None:
    """The deep stem of any project; ResNet-C if its channels are that one's."""
    if "backbone.conv1.0.weight" in weights:
        stem = [len(weights[f"backbone.conv1.{place}.weight"]) for place in (0, 3, 6)]
        if stem == [*STEM] and f"{network['backbone']}c" in VARIANTS:
            network["backbone"] += "c"
        else:
            network["stem"] = stem


def adapt_mmseg(weights: Weights, network: dict[str, Any]) -> None:
    """mmsegmentation's dilation and stem."""
    network["contract"] = "conv1_only" if network["backbone"] in ("resnet18", "resnet34") else True
    set_stem(weights, network)


def pooling_last(weights: Weights, project: str) -> int:
    """mmsegmentation concatenates image pooling first, this project last. Returns ASPP's width."""
    key = f"{project}.0.weight"
    width = len(weights[key])
    weights[key] = weights[key].roll(-width, 1)
    return width
