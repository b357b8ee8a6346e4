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
    image: np.ndarray,
    label: np.ndarray,
    params: SampleParams,
    out_image: np.ndarray,
    out_label: np.ndarray,
) -> None:
    """(H,W,3), (H,W) uint8 -> fill a crop, (h,w,3) and (h,w); right and below it is padded.

    Only the window is read, so images may be views of a file. Padding has label 255.
    """
    rows = slice(params.top, params.top + params.height)
    columns = slice(params.left, params.left + params.width)
    height, width = params.resized
    # Between half and full size bilinear sampling skips no pixel, and INTER_AREA takes 5 x as long.
    shrink = cv2.INTER_AREA if 2 * height < params.height else cv2.INTER_LINEAR
    for pixels, out, interpolation, padding in (
        (image, out_image, shrink, PADDING),
        (label, out_label, cv2.INTER_NEAREST_EXACT, IGNORE),
    ):
        inside = out[:height, :width]
        if (height, width) == (params.height, params.width):
            np.copyto(inside, pixels[rows, columns])
        else:
            cv2.resize(pixels[rows, columns], (width, height), inside, 0, 0, interpolation)
        if params.flip:
            cv2.flip(inside, 1, inside)
        out[height:] = padding
        out[:height, width:] = padding


def normalize(images: torch.Tensor) -> torch.Tensor:
    """(N,H,W,3) uint8 RGB -> (N,3,H,W) float32, channels_last, ImageNet mean 0 and deviation 1."""
    count, height, width, channels = images.shape
    # Lines as rows of 3W numbers: three channels alone are too few to compute fast (16 x, CPU).
    rows = images.reshape(count, height, width * channels).to(torch.float32, copy=True)
    mean, std = (values.repeat(width) for values in channel_statistics(images.device))
    return rows.sub_(mean).div_(std).view(images.shape).permute(0, 3, 1, 2)


@lru_cache
def channel_statistics(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of the three channels; copied to a GPU once, not at every step."""
    return tuple(torch.tensor(values, device=device) for values in (IMAGENET_MEAN, IMAGENET_STD))
