"""A checkpoint file -> a network; images -> label maps."""

import copy
import sys
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
from utils.errors import out_of_memory
from utils.transforms import normalize

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


def load_model(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a checkpoint in evaluation mode, on the CPU, and the rest of the file.

    Its averaged weights, where the training kept any.
    """
    state = load_checkpoint(path, needs=("network", "model", "config", "classes"))
    weights = state.pop("model")
    weights = state.pop("ema", None) or weights
    with torch.device("meta"):  # no random weights first
        network = build_model(**state["network"])
    network.load_state_dict(weights, assign=True)
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
    crop: tuple[int, int] | None = None,
    stride: tuple[int, int] | None = None,
) -> torch.Tensor:
    """(N,H,W,3) uint8 -> logits (N,K,h,w): at the model's stride of one scale without flip, at the
    scaled image's size with windows; otherwise the logarithm of the mean probability over scales
    and flips, (N,K,*size). crop and stride: predict's."""
    normalized = normalize(images)
    mirrors = (False, True) if flip else (False,)
    mean: torch.Tensor | float = 0.0
    for scale in scales:
        scaled = rescale(normalized, scale)
        for mirrored in mirrors:
            seen = scaled.flip(3) if mirrored else scaled
            logits = window_logits(model, seen, crop, stride) if crop else model(seen)["out"]
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
    crop: tuple[int, int] | None = None,
    stride: tuple[int, int] | None = None,
) -> torch.Tensor:
    """(N,H,W,3) uint8 RGB -> (N,*size) uint8 train ids. `scales`: image sizes, as factors.

    crop: the model sees windows of this size, `stride` apart (two thirds of it by default), and
    their logits are averaged: mmsegmentation's and PSPNet's sliding window.
    """
    logits = predict_logits(
        model, images, size=size, scales=scales, flip=flip, crop=crop, stride=stride
    )
    return upsample_argmax(logits, size)


def window_logits(
    model: nn.Module,
    images: torch.Tensor,
    crop: tuple[int, int],
    stride: tuple[int, int] | None = None,
) -> torch.Tensor:
    """(N,3,H,W) -> (N,K,H,W): the mean of the windows' upsampled logits at each pixel."""
    height, width = images.shape[-2:]
    rows, columns = min(crop[0], height), min(crop[1], width)
    down, right = stride or (-(-2 * rows // 3), -(-2 * columns // 3))
    total: torch.Tensor | None = None
    seen = images.new_zeros(height, width)
    for top in window_starts(height, rows, down):
        for left in window_starts(width, columns, right):
            window = (..., slice(top, top + rows), slice(left, left + columns))
            logits = model(images[window])["out"].float()
            if total is None:
                total = logits.new_zeros(*logits.shape[:2], height, width)
            total[window] += F.interpolate(
                logits, (rows, columns), mode="bilinear", align_corners=False
            )
            seen[window] += 1
    return total.div_(seen)


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Every stride-th place; the last window ends where the image does."""
    last = length - window
    return [min(start, last) for start in range(0, last + stride, stride)]


class WithinMemory:
    """predict_logits with these options; in windows once an image does not fit into memory."""

    SMALLEST = 128

    def __init__(self, model: nn.Module, **options: Any) -> None:
        self.model, self.options = model, options

    def __call__(self, images: torch.Tensor, *, size: tuple[int, int]) -> torch.Tensor:
        while True:
            try:
                return predict_logits(self.model, images, size=size, **self.options)
            except (RuntimeError, MemoryError) as error:
                crop = self.options.get("crop") or images.shape[1:3]
                if not out_of_memory(error) or max(crop) <= self.SMALLEST:
                    raise
            # Outside the handler, which keeps the failed call's tensors alive.
            self.options |= {"crop": tuple(-(-side // 64) * 32 for side in crop), "stride": None}
            crop = "x".join(map(str, self.options["crop"]))
            what = f"too little memory for an image at once, predicted in windows of {crop}"
            print(f"warning: {what}: the score differs a little", file=sys.stderr)


def rescale(images: torch.Tensor, scale: float) -> torch.Tensor:
    """(N,3,H,W) float -> the size times `scale`; antialiased, as training crops are."""
    if scale == 1:
        return images
    size = [max(1, round(length * scale)) for length in images.shape[-2:]]
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
