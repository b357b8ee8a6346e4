"""PyTorch's rule of bilinear interpolation, as matrices."""

from math import floor
from typing import NamedTuple

import torch
from torch.nn import functional as F

SLAB_LOGITS = 1 << 19  # upsampled at once on a CPU, as its caches hold;
DEVICE_LOGITS = 1 << 26  # on another device, to have it busy: an image of 19 x 1024x2048
BAND_COLUMNS = 128  # made by one product on a CPU


class Piece(NamedTuple):
    """Neighbouring rows or columns of the output as a product: matrix @ input[sources]."""

    pixels: slice
    sources: slice
    matrix: torch.Tensor


def make_pieces(
    images: torch.Tensor, size: tuple[int, int], align_corners: bool
) -> tuple[list[Piece], list[Piece]]:
    """Rows and columns of bilinear upsampling to `size`, in pieces that suit the device."""
    _, classes, height, width = images.shape
    on_cpu = images.device.type == "cpu"
    band = BAND_COLUMNS if on_cpu else size[1]
    rows = max(8, (SLAB_LOGITS if on_cpu else DEVICE_LOGITS) // (classes * size[1]))
    return (
        cut(images, height, size[0], rows, align_corners),
        cut(images, width, size[1], band, align_corners),
    )


def cut(like: torch.Tensor, small: int, large: int, step: int, align_corners: bool) -> list[Piece]:
    """Linear interpolation from `small` to `large` pixels, `step` of these to a piece."""
    unit = torch.eye(small, dtype=torch.float64, device=like.device)[None]
    matrix = F.interpolate(unit, large, mode="linear", align_corners=align_corners)[0]
    matrix = matrix.T.to(like.dtype)
    scale, shift = scale_and_shift(small, large, align_corners)
    pieces = []
    for start in range(0, large, step):
        stop = min(start + step, large)
        first, last = (floor(pixel * scale + shift) for pixel in (start, stop - 1))
        sources = slice(max(0, first), min(small, last + 2))
        pixels = slice(start, stop)
        pieces.append(Piece(pixels, sources, matrix[pixels, sources].contiguous()))
    return pieces


def scale_and_shift(small: int, large: int, align_corners: bool) -> tuple[float, float]:
    """Pixel y comes from the source y * scale + shift, but at least from the first."""
    if align_corners:
        return (small - 1) / max(large - 1, 1), 0.0
    return small / large, (small / large - 1) / 2


def widen(image: torch.Tensor, columns: list[Piece]) -> torch.Tensor:
    """(K,h,w) -> (K,h,W)."""
    flat = image.flatten(0, 1)
    wide = image.new_empty(len(flat), columns[-1].pixels.stop)
    for pixels, sources, matrix in columns:
        torch.mm(flat[:, sources], matrix.T, out=wide[:, pixels])
    return wide.unflatten(0, image.shape[:2])


def in_float32(logits: torch.Tensor) -> torch.Tensor:
    """float32 for half precision; float64 stays."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
