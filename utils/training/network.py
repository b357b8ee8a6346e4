"""Options -> a network: the arguments of its architecture, pretrained weights, other weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model import MODELS, build_model, encoders_of, option_names
from model.convert import renamed, unwrap
from model.encoders import ENCODERS, build_encoder
from utils.base.download import download
from utils.base.errors import UserError
from utils.training.checkpoint import read_tensors
from utils.training.config import Config
from utils.training.published import PRETRAINED

NETWORK_OPTIONS = ("backbone", "output_stride", "norm", "multi_grid", "aux", "separable", "mask")
NETWORK_OPTIONS += ("attention", "center_window", "deformable", "semantic_layers", "roi_loss")


def network_options(config: Config, num_classes: int, things: Sequence[int] = ()) -> dict[str, Any]:
    """Arguments of build_model: the NETWORK_OPTIONS that the architecture's constructor has.
    UserError for a given option that it does not have, and if --batch_size is too small for it."""
    if config.model not in MODELS:
        known = ", ".join(MODELS)
        raise UserError(f"--model {config.model}: unknown architecture. Give one of {known}")
    taken = option_names(config.model)
    network: dict[str, Any] = {"name": config.model, "num_classes": num_classes}
    for name in (*NETWORK_OPTIONS, "backbone_weights"):
        value = getattr(config, name)
        if name not in taken:
            if value not in (getattr(Config, name), None):  # it was given
                owners = [model for model in MODELS if name in option_names(model)]
                raise UserError(f"--{name}: for {', '.join(owners)} only. Leave it out")
        elif name in NETWORK_OPTIONS:
            network[name] = list(value) if isinstance(value, tuple) else value
    if "things" in taken:
        network["things"] = [*things]
    if "backbone" not in network and config.freeze_encoder_steps:
        owners = [model for model in MODELS if "backbone" in option_names(model)]
        raise UserError(f"--freeze_encoder_steps: for {', '.join(owners)} only. Leave it out")
    if "backbone" in network and config.backbone not in (own := encoders_of(config.model)):
        if config.backbone != Config.backbone:  # it was given
            what = f"--backbone {config.backbone}: not an encoder of {config.model}"
            raise UserError(f"{what}. Give one of {', '.join(own)}")
        network["backbone"] = own[0]
    for option in ("compile", "find_batch_size"):
        if getattr(config, option) and getattr(MODELS[config.model], "dynamic", False):
            what = f"not for {config.model}, whose shapes and memory depend on the instances"
            raise UserError(f"--{option} true: {what}. Leave it out")
    least = getattr(MODELS[config.model], "smallest_image", 1)
    if min(side for _, part in config.parts() for side in part.crop) < least:
        raise UserError(f"--crop must be at least {least} high and wide for {config.model}")
    least = getattr(MODELS[config.model], "smallest_batch", 1)
    if min(part.batch_size for _, part in config.parts()) < least and config.norm == "bn":
        what = f"at least {least} for {config.model} (BatchNorm after image pooling)"
        raise UserError(f"--batch_size must be {what}, or 1 with --norm gn or gn_ws")
    return network


def pretrained_weights(config: Config, network: Mapping[str, Any]) -> dict[str, Any]:
    """{"backbone_weights": a state dict or None}; {} for an architecture without a backbone."""
    if "backbone" not in network:
        return {}
    how = {"norm": network.get("norm", "bn")}
    weights = load_backbone_weights(config.backbone_weights, network["backbone"], **how)
    return {"backbone_weights": weights}


def load_backbone_weights(
    spec: str | None, backbone: str, *, norm: str = "bn"
) -> dict[str, torch.Tensor] | None:
    """State dict of 'imagenet' (the encoder's own weight file) or of a file; None for None.

    ImageNet files are read from pretrained_models/; missing ones are downloaded if a URL is known.
    """
    if spec is None:
        return None
    with torch.device("meta"):  # shapes without memory
        expected = build_encoder(backbone, norm=norm).state_dict()
    path = imagenet_file(backbone, norm) if spec == "imagenet" else Path(spec)
    content = read_tensors(path)
    weights = unwrap(content if isinstance(content, dict) else {})
    for key in [key for key in weights if key.startswith("stem.")]:  # mmsegmentation's ResNet-C
        own = key.replace("stem.7.", "bn1.").replace("stem.", "conv1.")
        weights[own] = weights.pop(key)
    for key, value in expected.items():
        if key.endswith("num_batches_tracked"):
            continue
        if key not in weights or weights[key].shape != value.shape:
            raise UserError(f"{path}: no {key} of {tuple(value.shape)}. Give weights of {backbone}")
    if norm != "bn" and any(key.endswith("running_mean") for key in weights):
        raise UserError(f"{path}: weights of BatchNorm. Give weights of {norm}, or --norm bn")
    return {key: weights[key] for key in expected if key in weights}


def imagenet_file(backbone: str, norm: str) -> Path:
    """The encoder's weight file in pretrained_models/, downloaded if it is missing."""
    file = ENCODERS[backbone].weight_file(backbone, norm)
    path = PRETRAINED / file.name
    advice = ", or start from random weights: --backbone_weights null"
    if file.url is not None:
        return download(file.url, path, advice=advice)
    if not path.is_file():
        raise UserError(f"{path}: missing. Download it from {file.page}{advice}")
    return path


# COCO's panoptic names for classes of Cityscapes that it does not have under the same name.
ALIASES = {
    "sidewalk": "pavement-merged", "building": "building-other-merged", "wall": "wall-other-merged",
    "fence": "fence-merged", "vegetation": "tree-merged", "terrain": "grass-merged",
    "sky": "sky-other-merged", "rider": "person",
}  # fmt: skip


def take_over(
    model: nn.Module, path: Path, network: Mapping[str, Any], classes: Sequence[str]
) -> str:
    """Load the tensors of a checkpoint that fit by name and shape; returns text on the random rest.

    Prefers averaged weights. Also accepts a plain state_dict and files of other projects, whose
    tensors it renames. From a checkpoint with other classes it loads the rows of each class of the
    same name, or of the one in ALIASES.
    """
    content, own = read_tensors(path), model.state_dict()
    content = content if isinstance(content, dict) else {}
    ours = "format" in content  # train.py's
    stored = (content.get("ema") or content.get("model") or {}) if ours else renamed(content)
    weights = {key.removeprefix("network."): value for key, value in stored.items()}
    before = content.get("classes", classes) if ours else classes
    network_before = content.get("network", {}) if ours else {}
    outputs = network_before.get("num_classes", len(before))
    before = [*before, *[""] * (outputs - len(before))]  # fregu856's network also predicts void
    sources = {name: name if name in before else ALIASES.get(name) for name in classes}
    common = [name for name in classes if sources[name] in before]
    if [*before] != [*classes]:
        with torch.device("meta"):  # only tensors with a row per class get another shape
            other = build_model(**{**network, "num_classes": len(classes) + 1}).state_dict()
        things = [classes[x] for x in network.get("things", ())]
        things_before = [before[x] for x in network_before.get("things", ())]
        for name in weights.keys() & other.keys():
            rows, rows_before = [*classes], [*before]
            if own[name].shape == other[name].shape:
                rows = model.thing_rows(name, things) if things else []
                rows_before = model.thing_rows(name, things_before) if things else []
            if rows and weights[name].shape[1:] == own[name].shape[1:]:
                shared = [x for x in rows if sources.get(x, x) in rows_before]
                here = [rows.index(x) for x in shared]
                there = [rows_before.index(sources.get(x, x)) for x in shared]
                old = weights[name].reshape(len(rows_before), -1)[there]
                own[name].view(len(rows), -1)[here] = old.to(own[name].dtype)
                weights[name] = own[name]
    shapes = {name: getattr(value, "shape", None) for name, value in weights.items()}
    fitting = {name: weights[name] for name in own if shapes.get(name) == own[name].shape}
    if not fitting:
        raise UserError(f"{path}: no tensor fits this network. Give one with the same backbone")
    model.load_state_dict({**own, **fitting})
    missing = [name for name in own if name not in fitting]
    missing += [f"class {name}" for name in classes if name not in common]
    return f"random: {', '.join(missing) or 'none'}"
