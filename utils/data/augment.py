"""Random scale, crop, flip and colours of a training sample: pure functions of (seed, sample)."""

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import cv2
import numpy as np
import torch

from utils.data.label_table import IGNORE

LUMA = np.array([0.299, 0.587, 0.114])  # weights of R, G, B in luma, ITU-R BT.601


class Stream(IntEnum):
    """First number of every random seed. Never change a value: a resumed run must draw the same."""

    ORDER = 1
    AUGMENTATION = 2
    DROPOUT = 3
    PHOTOMETRIC = 4
    CLASS_UNIFORM = 5


@dataclass(frozen=True)
class SampleParams:
    """Augmentation of one sample: which window of the image to read, its new size and its flip."""

    top: int  # window in the source image, pixels
    left: int
    height: int
    width: int
    resized: tuple[int, int]  # height and width of the scaled window, at most those of the crop
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
    """Augmentation of sample `index` in `epoch`: a pure function with one result on every machine.

    attempt: number of rejected draws for this sample. around: pixel (y, x) of the image that the
    window must contain.

    The window is cut out first and then scaled: scaling the whole image first would decode and
    scale pixels outside the crop.
    """
    again = (attempt,) if attempt else ()
    rng = np.random.default_rng((Stream.AUGMENTATION, seed, epoch, index, *again))
    factor = rng.uniform(*scale)
    window = [max(1, min(full, round(cut / factor))) for full, cut in zip(size, crop, strict=True)]
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


class Plane(NamedTuple):
    """How one plane of a sample is stored and cropped."""

    dtype: torch.dtype
    smooth: bool  # interpolate between pixels; ids must not be mixed
    padding: int | tuple[int, int, int]


PLANES = {
    "image": Plane(torch.uint8, True, (124, 116, 104)),  # padding: about zero after normalisation
    "label": Plane(torch.uint8, False, IGNORE),
    "instance": Plane(torch.uint16, False, 0),
}


def crop_plane(pixels: np.ndarray, params: SampleParams, out: np.ndarray, plane: Plane) -> None:
    """pixels (H,W[,3]) -> fill the crop `out` (h,w[,3]) of the same type; pad right and below.

    Reads only the window, so `pixels` may be a view of a file.
    """
    rows = slice(params.top, params.top + params.height)
    columns = slice(params.left, params.left + params.width)
    height, width = params.resized
    # At half size or more, INTER_LINEAR skips no pixel, and INTER_AREA takes 5 times as long.
    smooth = cv2.INTER_AREA if 2 * height < params.height else cv2.INTER_LINEAR
    interpolation = smooth if plane.smooth else cv2.INTER_NEAREST_EXACT
    inside = out[:height, :width]
    if (height, width) == (params.height, params.width):
        np.copyto(inside, pixels[rows, columns])
    else:
        cv2.resize(pixels[rows, columns], (width, height), inside, 0, 0, interpolation)
    if params.flip:
        cv2.flip(inside, 1, inside)
    out[height:] = plane.padding
    out[:height, width:] = plane.padding


def largest_class_share(train_ids: np.ndarray, params: SampleParams) -> float:
    """Largest share of one class in the window's labelled pixels (1 of 16 counts); 0 if none."""
    rows = slice(params.top, params.top + params.height, 4)
    columns = slice(params.left, params.left + params.width, 4)
    counts = np.bincount(train_ids[rows, columns].ravel(), minlength=256)[:IGNORE]
    return float(counts.max() / max(counts.sum(), 1))


def color_matrix(seed: int, epoch: int, index: int) -> np.ndarray:
    """(3,4) float32 matrix, RGB -> RGB with offset, of sample `index` in `epoch`; a pure function.

    Brightness +-32, contrast and saturation 0.5 to 1.5, hue +-18 degrees (SSD, arXiv 1512.02325,
    section 2.2), each for half of the samples. All are linear in RGB; a change of hue rotates
    colours about the grey axis.
    """
    rng = np.random.default_rng((Stream.PHOTOMETRIC, seed, epoch, index))
    low, high = np.array([[-32, 0.5, 0.5, -np.pi / 10], [32, 1.5, 1.5, np.pi / 10]])
    drawn, used = rng.uniform(low, high), rng.random(4) < 0.5
    brightness, contrast, saturation, angle = np.where(used, drawn, [0, 1, 1, 0])
    saturate = saturation * np.eye(3) + (1 - saturation) * LUMA[None]
    axis = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)  # Rodrigues' formula
    turn = np.eye(3) + np.sin(angle) * axis + (1 - np.cos(angle)) * axis @ axis
    matrix = contrast * turn @ saturate
    return np.column_stack([matrix, matrix @ np.full(3, brightness)]).astype(np.float32)
