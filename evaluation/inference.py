"""A checkpoint file -> a network; images -> label maps."""

import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from datasets import Dataset, build_dataset
from model import build_model
from model.layers import WSConv2d
from model.ops.upsample_argmax import upsample_argmax
from utils import distributed
from utils.checkpoint import load_checkpoint
from utils.config import PredictionOptions
from utils.distributed import World, autocast
from utils.errors import UserError, out_of_memory
from utils.files import resolve_data_root, resolve_log_root
from utils.run import find_checkpoint
from utils.transforms import normalize

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


def load_model(path: Path, *, output_stride: int | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a checkpoint in evaluation mode, on the CPU, and the rest of the file.

    Its averaged weights, where the training kept any. output_stride: another than it was trained
    with; dilations and atrous rates follow, weights do not depend on it.
    """
    state = load_checkpoint(path, needs=("network", "model", "config", "classes"))
    if output_stride is not None:
        network = state["network"]
        if network.get("atrous_rates"):  # a converted network's own; the usual ones follow
            scale = network["output_stride"] / output_stride
            network["atrous_rates"] = [max(1, int(x * scale)) for x in network["atrous_rates"]]
        network["output_stride"] = output_stride
    weights = state.pop("model")
    weights = state.pop("ema", None) or weights
    with torch.device("meta"):  # no random weights first
        network = build_model(**state["network"])
    network.load_state_dict(weights, assign=True)
    return network.eval(), state


@dataclass(frozen=True)
class Trained:
    """A checkpoint as a command's options want it used; the model is on `world`'s device."""

    path: Path
    model: nn.Module
    state: dict[str, Any]  # the rest of the file
    world: World
    amp: torch.dtype | None
    data_root: Path | None  # as given
    options: dict[str, Any]  # predict's

    @classmethod
    def open(
        cls, given: PredictionOptions, checkpoint: str | None = None, *, together: bool = False
    ) -> "Trained":
        """given.checkpoint, or another one under the same options.

        together: torchrun's processes share the work; else there must be one only.
        """
        world = distributed.start(given.device)
        if world.size > 1 and not together:
            name = Path(sys.argv[0]).name
            raise UserError(f"{name}: {world.size} processes would do the same. Use no torchrun")
        path = find_checkpoint(checkpoint or given.checkpoint, resolve_log_root(given.log_root))
        path = path.resolve()
        model, state = load_model(path, output_stride=given.output_stride)
        options = {
            "scales": given.scales or state["config"]["eval_scales"],
            "flip": given.flip,
            "crop": given.crop,
            "stride": given.stride,
        }
        amp = world.amp_dtype(given.precision)
        return cls(path, model.to(world.device), state, world, amp, given.data_root, options)

    def predictor(self) -> "Predictor":
        return Predictor(self.model, device=self.world.device, amp=self.amp, **self.options)

    def root(self, name: str | None = None) -> Path:
        """The folder of data set `name`, by default of the one that this was trained on."""
        own = self.state["config"]
        name = name or own["dataset"]
        recorded = Path(own["data_root"]) if name == own["dataset"] else None
        return resolve_data_root(name, self.data_root or recorded)

    def dataset(self, split: str, name: str | None = None) -> Dataset:
        """Labelled images of `name`; UserError where they have other classes or no labels."""
        name, root = name or self.state["config"]["dataset"], self.root(name)
        dataset = build_dataset(name, root, split)
        if list(dataset.classes.names) != self.state["classes"]:
            what = f"trained on other classes than {name}'s"
            raise UserError(f"{self.path}: {what}. Use its own data set")
        if not dataset.has_labels:
            raise UserError(f"{root}: the {split} split has no public labels. Use --split val")
        return dataset


def inference_copy(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode, channels last, each BatchNorm folded into its convolution, weights
    standardized for good.

    A BatchNorm is taken to follow the Conv2d that its module names just before it, as in
    torchvision's blocks. One copy for each state of the weights: it does not follow them.
    """
    network = copy.deepcopy(model).eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, WSConv2d):
            module.weight.copy_(module.standardized())
            module.__class__ = nn.Conv2d
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


class Predictor:
    """A trained network at work on single images, in windows once one does not fit into memory.

    `model`, on `device`, is left as it is: a copy in evaluation mode predicts. amp: what autocast
    computes in, None for float32; options: predict's.
    """

    SMALLEST = 128

    def __init__(
        self,
        model: nn.Module,
        *,
        device: torch.device,
        amp: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        self.model, self.device, self.amp = inference_copy(model), device, amp
        self.options = options

    def labels(self, image: np.ndarray, *, size: tuple[int, int] | None = None) -> np.ndarray:
        """(H,W,3) uint8 RGB -> (H,W) uint8 train ids, or of another `size`."""
        size = size or image.shape[:2]
        return upsample_argmax(self.logits(image, size=size), size)[0].cpu().numpy()

    def logits(self, image: np.ndarray, *, size: tuple[int, int]) -> torch.Tensor:
        """predict_logits of a batch of one."""
        images = torch.tensor(image)[None].to(self.device)
        while True:
            try:
                with autocast(self.device, self.amp):
                    return predict_logits(self.model, images, size=size, **self.options)
            except (RuntimeError, MemoryError) as error:
                crop = self.options.get("crop") or image.shape[:2]
                if not out_of_memory(error) or max(crop) <= self.SMALLEST:
                    raise
            # Outside the handler, which keeps the failed call's tensors alive.
            self.options |= {"crop": tuple(-(-side // 64) * 32 for side in crop), "stride": None}
            crop = "x".join(map(str, self.options["crop"]))
            what = f"too little memory for an image at once, predicted in windows of {crop}"
            print(f"warning: {what}: results differ a little", file=sys.stderr)


def rescale(images: torch.Tensor, scale: float) -> torch.Tensor:
    """(N,3,H,W) float -> the size times `scale`; antialiased, as training crops are."""
    if scale == 1:
        return images
    size = [max(1, int(length * scale + 0.5)) for length in images.shape[-2:]]
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
