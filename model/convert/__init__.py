"""Convert checkpoints of other projects, recognized by their keys, to this project's networks.

A file for each architecture has the tables: names of weights in the projects' published files.
tests/model/ reimplements the network of each project and compares logits.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from model import build_model, option_names
from model.convert import deeplabv3, deeplabv3plus, fcn, fpn, psanet, pspnet
from model.convert.source import Rules, Weights

# Each is recognized by its first key; a file of DeepLabV3+ also has that of DeepLabV3.
SOURCES = tuple(
    source
    for table in (deeplabv3plus, deeplabv3, fcn, fpn, psanet, pspnet)
    for source in table.SOURCES
)
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
    taken, usual = option_names(source.model), {"output_stride": 8}
    usual["aux"] = "aux_classifier.0.weight" in weights
    network = {"name": source.model, "backbone": backbone_of(weights, source.name)}
    network |= {key: usual[key] for key in usual if key in taken} | source.network
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
        if "align_corners" in taken:
            network["align_corners"] = align_corners
    if foreign := network.keys() - taken - {"name"}:
        raise ValueError(f"{source.model} has no option {', '.join(foreign)}")
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
    """The state_dict in a checkpoint of any usual layout, without the "module." prefix of DDP, half
    precision as float32."""
    for name in ("state_dict", "model_state", "model_state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, Mapping):
        raise ValueError("holds no state_dict")
    return {
        str(key).removeprefix("module."): value.float() if value.is_floating_point() else value
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
