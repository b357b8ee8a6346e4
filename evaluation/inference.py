"""Predict images: whole or in windows, at one scale or several."""

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from evaluation.task import TASKS, Prediction, Task
from evaluation.transfer import to_device, to_host
from model.layers import fold
from model.normalize import normalize
from model.ops.bilinear import setting
from model.ops.upsample_argmax import upsample_argmax
from model.ops.upsample_confidence import upsample_confidence
from model.ops.winograd import choose_convolutions
from utils.base.errors import UserError, out_of_memory, warn
from utils.data.label_table import LabelTable
from utils.training.distributed import autocast
from utils.training.replay import Replay


def inference_copy(
    model: nn.Module, amp: torch.dtype | None = None, *, on_cpu: bool = False
) -> nn.Module:
    """A copy in evaluation mode, channels last, with BatchNorm folded into the convolutions.

    The copy does not follow later changes of the weights. amp: dtype of autocast at prediction; the
    weights of convolutions are rounded to it here once, not for every image. on_cpu: for a CPU,
    where the largest convolutions in float32 are computed another way, and not for an export.
    """
    network = copy.deepcopy(model).eval().requires_grad_(False)
    fold(network)
    exact = tuple(getattr(network, "full_precision", ()))
    for name, module in network.named_modules():
        rounds = isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))
        if amp is not None and rounds and not name.startswith(exact):
            module.to(amp)
    if on_cpu and amp is None:
        choose_convolutions(network)
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
    """(N,H,W,3) uint8 RGB -> (N,K,h,w) logits; upsample_argmax(logits, size) gives the train ids.
    A network with several outputs, at one scale: all of them, one after the other, (N,C,h,w).

    One scale, no flip: (h,w) is the size of the model's output or, with crop, of the scaled image.
    Else the result is the logarithm of the mean probability over scales and flips, (N,K,*size).
    scales: factors of the image size. flip: also predict the mirrored image. crop: size of windows,
    `stride` (default: two thirds of crop) apart; their logits are averaged, as in PSPNet and mmseg.
    """
    normalized = normalize(images)
    mirrors = (False, True) if flip else (False,)
    mean: torch.Tensor | float = 0.0
    for scale in scales:
        scaled = rescale(normalized, scale)
        for mirrored in mirrors:
            seen = scaled.flip(3) if mirrored else scaled
            logits = window_logits(model, seen, crop, stride) if crop else joined(model(seen))
            if len(scales) * len(mirrors) == 1:
                return logits
            logits = logits.flip(3) if mirrored else logits
            full = F.interpolate(logits.float(), size, mode="bilinear")
            mean = mean + full.softmax(1) / (len(scales) * len(mirrors))
    return mean.clamp_min(torch.finfo(mean.dtype).tiny).log()  # exp is 0 for gaps above 103


def joined(outputs: dict) -> torch.Tensor | dict:
    """All maps; a network that detects instances has other outputs too, and keeps its dict."""
    if "detections" in outputs:
        return outputs
    return torch.cat([*outputs.values()], 1) if len(outputs) > 1 else outputs["out"]


def window_logits(
    model: nn.Module, images: torch.Tensor, crop: tuple[int, int], stride: tuple[int, int] | None
) -> torch.Tensor:
    """(N,3,H,W) -> (N,K,H,W): mean over windows of the upsampled logits at each pixel."""
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
            total[window] += F.interpolate(logits, (rows, columns), mode="bilinear")
            seen[window] += 1
    return total.div_(seen)


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Starts of windows, `stride` apart; the last window ends at the end of the image."""
    last = length - window
    return [min(start, last) for start in range(0, last + stride, stride)]


class Predictor:
    """Predicts single images with a trained network.

    `model`, on `device`, does not change: a copy in evaluation mode predicts. classes: needed for
    segments, which cannot be averaged over scales, mirrored images and windows: UserError. amp:
    dtype of autocast, None for float32. windows_if_needed: predict an image that does not fit into
    memory in windows, which changes results slightly; without it such an image is an error, because
    a score must not silently use another protocol. options: those of predict_logits.
    """

    SMALLEST = 128  # pixels of the smallest window's side
    MOST = 1 << 26  # pixels; larger images are predicted in tiles
    TILE, MARGIN = 2560, 256  # side of a tile, and its border that only gives context, in pixels

    def __init__(
        self,
        model: nn.Module,
        *,
        device: torch.device,
        task: Task = TASKS["semantic"],
        classes: LabelTable | None = None,
        amp: torch.dtype | None = None,
        windows_if_needed: bool = False,
        **options: Any,
    ) -> None:
        averaged = options.get("flip") or options.get("crop") or len(options.get("scales", ())) > 1
        if task.instances and averaged:
            what = "--flip, --crop and several --scales average predictions, but not segments"
            raise UserError(f"{what}. Leave them out; give one of --scales or --eval_scales")
        self.task, self.classes = task, classes
        self.model = inference_copy(model, amp, on_cpu=device.type == "cpu")
        self.least = getattr(model, "smallest_image", 1)  # pixels of a side
        self.device, self.amp = device, amp
        self.windows_if_needed, self.options = windows_if_needed and not task.instances, options
        self.too_large = math.inf  # pixels of the smallest image that did not fit
        self.windows: dict[str, Any] = {}  # options of such images
        self.first: tuple | None = None  # shape and result size of the first image
        graphs = device.type == "cuda" and not getattr(model, "dynamic", False)
        self.replay = Replay() if graphs else None  # for images of that shape

    def train_ids(self, image: np.ndarray, *, size: tuple[int, int] | None = None) -> np.ndarray:
        """(H,W,3) uint8 RGB -> (H,W) uint8 train ids, or train ids of `size`."""
        return self.task.train_ids(self.predict(image, size=size))

    def predict(self, image: np.ndarray, *, size: tuple[int, int] | None = None) -> Prediction:
        """(H,W,3) uint8 RGB -> prediction, (H,W) or of `size`."""
        size = size or image.shape[:2]
        if self.windows_if_needed and math.prod(image.shape[:2]) > self.MOST:
            whole = self.in_tiles(self.train_ids, image)
            return cv2.resize(whole, size[::-1], interpolation=cv2.INTER_NEAREST)
        found = to_host(self.task.predict(self.logits(image, size=size), size))()
        return self.task.finish(found, size, self.classes)

    def with_confidence(self, image: np.ndarray) -> np.ndarray:
        """(H,W,3) uint8 RGB -> (H,W,2) uint8: train ids, and 255 times their probability."""
        size = image.shape[:2]
        if self.windows_if_needed and math.prod(size) > self.MOST:
            return self.in_tiles(self.with_confidence, image)
        logits = self.logits(image, size=size)
        confidence = (255 * upsample_confidence(logits, size)).round().byte()
        return torch.stack([upsample_argmax(logits, size)[0], confidence[0]], 2).numpy(force=True)

    def in_tiles(
        self, predict: Callable[[np.ndarray], np.ndarray], image: np.ndarray
    ) -> np.ndarray:
        """predict(image) of an image of any size; needs memory for one tile only."""
        height, width = image.shape[:2]
        warn(f"an image of {height}x{width} is predicted in tiles of {self.TILE}x{self.TILE}")
        result: np.ndarray | None = None
        step = self.TILE - 2 * self.MARGIN
        tops, lefts = (window_starts(x, min(self.TILE, x), step) for x in image.shape[:2])
        for top, left in product(tops, lefts):
            tile = predict(image[top : top + self.TILE, left : left + self.TILE])
            if result is None:
                result = np.empty((height, width, *tile.shape[2:]), np.uint8)
            # The next tile overwrites the margins at the bottom and at the right.
            y, x = (self.MARGIN if start else 0 for start in (top, left))
            result[top + y : top + self.TILE, left + x : left + self.TILE] = tile[y:, x:]
        return result

    def logits(self, image: np.ndarray, *, size: tuple[int, int]) -> torch.Tensor:
        """predict_logits of an image; UserError if it does not fit into memory."""
        if math.prod(image.shape[:2]) > self.MOST:
            what = f"an image of {image.shape[0]}x{image.shape[1]}: too large to be predicted whole"
            raise UserError(f"{what}. Cut it into parts of at most {self.MOST:,} pixels")
        images = to_device(image, self.device)[None]
        options = self.options | (self.windows if image[..., 0].size >= self.too_large else {})
        scaled = (resized(image.shape[:2], scale) for scale in options.get("scales") or (1.0,))
        side = min(min(*sides, *(options.get("crop") or sides)) for sides in scaled)
        if side < self.least:
            what = f"an image of {image.shape[0]}x{image.shape[1]}: {side} pixels for the network"
            advice = "Give larger images, --scales (--eval_scales of train.py) or --crop"
            raise UserError(f"{what}, which needs {self.least}. {advice}")
        self.first = self.first or (image.shape, size)
        cudnn, usual = torch.backends.cudnn, self.first == (image.shape, size)
        while True:
            try:
                # cuDNN's benchmark pays off for one size, not for hundreds of sizes.
                with setting(cudnn, "benchmark", usual), autocast(self.device, self.amp):
                    predict = partial(predict_logits, self.model, size=size, **options)
                    if usual and self.replay is not None:
                        return self.replay(predict, images)
                    return predict(images)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
            # Outside the except block, which keeps the tensors of the failed call alive.
            crop = self.smaller_crop(image.shape[:2], options.get("crop") or image.shape[:2])
            self.windows = {"crop": crop, "stride": None}
            self.too_large = min(self.too_large, image[..., 0].size)
            options = options | self.windows
            self.replay = None  # too little memory for another CUDA graph

    def smaller_crop(self, size: tuple[int, int], crop: tuple[int, int]) -> tuple[int, int]:
        """Half of the window that did not fit into memory; UserError if windows are not allowed."""
        height, width = (-(-side // 64) * 32 for side in crop)
        what = f"an image of {size[0]}x{size[1]}"
        too_small = max(crop) <= self.SMALLEST or min(height, width) < self.least
        if not self.windows_if_needed or too_small:
            advice = "Give " if self.task.instances else "Give --crop for windows, or "
            advice += "smaller --scales (--eval_scales of train.py)"
            what += f", predicted {crop[0]}x{crop[1]} at once"
            raise UserError(f"out of memory with {what}. {advice}")
        done = f"predicted in windows of {height}x{width}: results differ slightly"
        warn(f"too little memory for {what} at once, {done}")
        return height, width


def rescale(images: torch.Tensor, scale: float) -> torch.Tensor:
    """(N,3,H,W) float -> resized by the factor `scale`; antialiased, as training crops are."""
    if scale == 1:
        return images
    size = resized(images.shape[-2:], scale)
    return F.interpolate(images, size, mode="bilinear", antialias=True)


def resized(size: Sequence[int], scale: float) -> list[int]:
    return [max(1, int(length * scale + 0.5)) for length in size]
