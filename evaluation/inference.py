"""A checkpoint file -> a network; images -> label maps."""

import copy
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from model import build_model
from model.ops.upsample_argmax import upsample_argmax
from utils.checkpoint import load_checkpoint
from utils.transforms import normalize

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


def load_model(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a checkpoint in evaluation mode, on the CPU, and the rest of the file.

    Its averaged weights, where the training kept any.
    """
    state = load_checkpoint(path, needs=("network", "model", "config", "classes"))
    weights = state.pop("model")
    weights = state.pop("ema", None) or weights
    network = build_model(**state["network"])
    network.load_state_dict(weights)
    return network.eval(), state


def inference_copy(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode, channels last, each BatchNorm folded into its convolution.

    A BatchNorm is taken to follow the Conv2d that its module names just before it, as in
    torchvision's blocks. One copy for each state of the weights: it does not follow them.
    """
    network = copy.deepcopy(model).eval().requires_grad_(False)
    for module in network.modules():
        for (conv_name, conv), (norm_name, norm) in pairwise([*module.named_children()]):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, NORMS):
                setattr(module, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(module, norm_name, nn.Identity())
    return network.to(memory_format=torch.channels_last)


@torch.inference_mode()
def predict_logits(
    model: nn.Module,
    images: torch.Tensor,
    *,
    size: tuple[int, int],
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> torch.Tensor:
    """(N,H,W,3) uint8 -> logits (N,K,h,w) at the model's stride for one scale without flip;
    otherwise the logarithm of the mean probability over scales and flips, (N,K,*size)."""
    normalized = normalize(images)
    mirrors = (False, True) if flip else (False,)
    mean: torch.Tensor | float = 0.0
    for scale in scales:
        scaled = rescale(normalized, scale)
        for mirrored in mirrors:
            logits = model(scaled.flip(3) if mirrored else scaled)["out"]
            if len(scales) * len(mirrors) == 1:
                return logits
            logits = logits.flip(3) if mirrored else logits
            full = F.interpolate(logits.float(), size, mode="bilinear", align_corners=False)
            mean = mean + full.softmax(1) / (len(scales) * len(mirrors))
    return mean.log()


def predict(
    model: nn.Module,
    images: torch.Tensor,
    *,
    size: tuple[int, int],
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> torch.Tensor:
    """(N,H,W,3) uint8 RGB -> (N,*size) uint8 train ids. `scales`: image sizes, as factors."""
    return upsample_argmax(predict_logits(model, images, size=size, scales=scales, flip=flip), size)


def rescale(images: torch.Tensor, scale: float) -> torch.Tensor:
    """(N,3,H,W) float -> the size times `scale`; antialiased, as training crops are."""
    if scale == 1:
        return images
    size = [max(1, round(length * scale)) for length in images.shape[-2:]]
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
