"""Random scale, crop and flip of a training sample, and normalisation on the device."""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import torch

from utils.labels import IGNORE

IMAGENET_MEAN = (123.675, 116.28, 103.53)  # RGB, of uint8 values; torchvision's (0.485, ...) * 255
IMAGENET_STD = (58.395, 57.12, 57.375)
AUGMENTATION = 2  # keeps this random stream apart from the loader's
PADDING = (124, 116, 104)  # close to zero once normalised


@dataclass(frozen=True)
class SampleParams:
    """One sample's augmentation: the window to read and what becomes of it."""

    top: int  # window in the source image, pixels
    left: int
    height: int
    width: int
    resized: tuple[int, int]  # height and width of the scaled window, at most the crop's
    flip: bool


def sample_params(
    seed: int,
    epoch: int,
    index: int,
    *,
    size: tuple[int, int],
    crop: tuple[int, int],
    scale: tuple[float, float],
    flip: bool,
) -> SampleParams:
    """Augmentation of sample `index` in `epoch`: a pure function, the same on every machine.

    Scaling the whole image and then cropping would decode and scale pixels that are thrown away;
    the window that a crop of the scaled image covers is cut out first and scaled alone.
    """
    rng = np.random.default_rng((AUGMENTATION, seed, epoch, index))
    factor = rng.uniform(*scale)
    window = [min(full, round(cut / factor)) for full, cut in zip(size, crop, strict=True)]
    window = [max(1, length) for length in window]
    resized = [min(cut, max(1, round(w * factor))) for w, cut in zip(window, crop, strict=True)]
    top, left = (int(rng.integers(full - w + 1)) for full, w in zip(size, window, strict=True))
    mirrored = bool(rng.random() < 0.5) and flip
    return SampleParams(top, left, *window, resized=(resized[0], resized[1]), flip=mirrored)


def crop_sample(
    image: np.ndarray, label: np.ndarray, params: SampleParams, crop: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """(H,W,3), (H,W) uint8 -> crop (h,w,3), (h,w); padded right and below, label 255 there."""
    rows = slice(params.top, params.top + params.height)
    columns = slice(params.left, params.left + params.width)
    height, width = params.resized
    shrink = height < params.height
    image = resize(
        image[rows, columns], (height, width), cv2.INTER_AREA if shrink else cv2.INTER_LINEAR
    )
    label = resize(label[rows, columns], (height, width), cv2.INTER_NEAREST_EXACT)
    if params.flip:
        image, label = image[:, ::-1], label[:, ::-1]
    if (height, width) == crop:
        return np.ascontiguousarray(image), np.ascontiguousarray(label)
    padded_image = np.full((*crop, 3), PADDING, np.uint8)
    padded_label = np.full(crop, IGNORE, np.uint8)
    padded_image[:height, :width] = image
    padded_label[:height, :width] = label
    return padded_image, padded_label


def resize(pixels: np.ndarray, size: tuple[int, int], interpolation: int) -> np.ndarray:
    """(H,W[,3]) uint8 -> `size` = (height, width)."""
    if pixels.shape[:2] == size:
        return pixels
    return cv2.resize(pixels, size[::-1], interpolation=interpolation)


def normalize(images: torch.Tensor) -> torch.Tensor:
    """(N,H,W,3) uint8 RGB -> (N,3,H,W) float32, channels_last, ImageNet mean 0 and deviation 1."""
    mean, std = channel_statistics(images.device)
    return (images.permute(0, 3, 1, 2).float() - mean) / std


@lru_cache
def channel_statistics(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation, (1,3,1,1); copied to a GPU once, not at every step."""
    mean, std = (torch.tensor(x, device=device) for x in (IMAGENET_MEAN, IMAGENET_STD))
    return mean.view(1, 3, 1, 1), std.view(1, 3, 1, 1)
