"""Random scale, crop and flip of a training sample, and normalisation on the device."""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import torch

from utils.labels import IGNORE

IMAGENET_MEAN = (123.675, 116.28, 103.53)  # RGB, of uint8 values; torchvision's (0.485, ...) * 255
IMAGENET_STD = (58.395, 57.12, 57.375)
AUGMENTATION, PHOTOMETRIC = 2, 4  # keep these random streams apart from the loader's
LUMA = np.array([0.299, 0.587, 0.114])  # of RGB, ITU-R BT.601
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
    attempt: int = 0,
    around: tuple[int, int] | None = None,
) -> SampleParams:
    """Augmentation of sample `index` in `epoch`: a pure function, the same on every machine.

    `attempt` counts windows that were drawn before and refused; the window holds the pixel
    `around` (y, x) of the image, anywhere within it.

    Scaling the whole image and then cropping would decode and scale pixels that are thrown away;
    the window that a crop of the scaled image covers is cut out first and scaled alone.
    """
    again = (attempt,) if attempt else ()
    rng = np.random.default_rng((AUGMENTATION, seed, epoch, index, *again))
    factor = rng.uniform(*scale)
    window = [min(full, round(cut / factor)) for full, cut in zip(size, crop, strict=True)]
    window = [max(1, length) for length in window]
    resized = [min(cut, max(1, round(w * factor))) for w, cut in zip(window, crop, strict=True)]
    ranges = [(0, full - length) for full, length in zip(size, window, strict=True)]
    if around is not None:
        ranges = [
            (max(low, pixel - length + 1), min(high, pixel))
            for (low, high), pixel, length in zip(ranges, around, window, strict=True)
        ]
    top, left = (int(rng.integers(low, high + 1)) for low, high in ranges)
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


def largest_class_share(label: np.ndarray, params: SampleParams) -> float:
    """Of the labelled pixels in the window, every fourth in both directions; 0 for none."""
    rows = slice(params.top, params.top + params.height, 4)
    columns = slice(params.left, params.left + params.width, 4)
    counts = np.bincount(label[rows, columns].ravel(), minlength=256)[:IGNORE]
    return float(counts.max() / max(counts.sum(), 1))


def color_matrix(seed: int, epoch: int, index: int) -> np.ndarray:
    """(3,4) float32: RGB -> RGB and offset, of sample `index` in `epoch`; a pure function.

    Brightness +-32, contrast and saturation 0.5 to 1.5, hue +-18 degrees (SSD, arXiv 1512.02325,
    section 2.2), each for half of the samples. All are linear in RGB; hue turns the colours about
    the grey axis.
    """
    rng = np.random.default_rng((PHOTOMETRIC, seed, epoch, index))
    low, high = np.array([[-32, 0.5, 0.5, -np.pi / 10], [32, 1.5, 1.5, np.pi / 10]])
    drawn, used = rng.uniform(low, high), rng.random(4) < 0.5
    brightness, contrast, saturation, angle = np.where(used, drawn, [0, 1, 1, 0])
    saturate = saturation * np.eye(3) + (1 - saturation) * LUMA[None]
    axis = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)  # Rodrigues' formula
    turn = np.eye(3) + np.sin(angle) * axis + (1 - np.cos(angle)) * axis @ axis
    matrix = contrast * turn @ saturate
    return np.column_stack([matrix, matrix @ np.full(3, brightness)]).astype(np.float32)


def distort(images: torch.Tensor, colors: torch.Tensor) -> torch.Tensor:
    """(N,H,W,3) uint8, (N,3,4) -> the same size in float32, 0 to 255; on the images' device."""
    pixels = images.flatten(1, 2).float()
    pixels = torch.baddbmm(colors[:, None, :, 3], pixels, colors[:, :, :3].mT)
    return pixels.clamp_(0, 255).view(images.shape)


def normalize(images: torch.Tensor) -> torch.Tensor:
    """(N,H,W,3) RGB, 0 to 255 -> (N,3,H,W) float32, channels_last, ImageNet mean 0, deviation 1."""
    count, height, width, channels = images.shape
    # Lines as rows of 3W numbers: three channels alone are too few to compute fast (16 x, CPU).
    rows = images.reshape(count, height, width * channels).to(torch.float32, copy=True)
    mean, std = (values.repeat(width) for values in channel_statistics(images.device))
    return rows.sub_(mean).div_(std).view(images.shape).permute(0, 3, 1, 2)


@lru_cache
def channel_statistics(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of the three channels; copied to a GPU once, not at every step."""
    return tuple(torch.tensor(values, device=device) for values in (IMAGENET_MEAN, IMAGENET_STD))
