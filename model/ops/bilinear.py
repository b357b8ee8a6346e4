"""PyTorch's bilinear interpolation as matrix products."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from math import floor
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

SLAB_LOGITS = 1 << 19  # logits upsampled at once on a CPU; they fit into its caches
DEVICE_LOGITS = 1 << 27  # on other devices, enough to keep them busy: 19 classes of 8 x 512x1024
BAND_COLUMNS = 128  # output columns of one matrix product on a CPU


class Piece(NamedTuple):
    """Adjacent rows or columns of the output: output[pixels] = matrix @ input[sources]."""

    pixels: slice
    sources: slice
    matrix: torch.Tensor


def at_once(images: torch.Tensor) -> list[slice]:
    """Slices of images to compute together: single images on a CPU, all on other devices."""
    step = 1 if images.device.type == "cpu" else len(images)
    return [slice(start, start + step) for start in range(0, len(images), step)]


def make_pieces(
    images: torch.Tensor, size: tuple[int, int], align_corners: bool
) -> tuple[list[Piece], list[Piece]]:
    """Pieces of rows and of columns for bilinear upsampling to `size`, sized for the device."""
    count, classes, height, width = images.shape
    on_cpu = images.device.type == "cpu"
    band = BAND_COLUMNS if on_cpu else size[1]
    logits = SLAB_LOGITS if on_cpu else DEVICE_LOGITS // count
    rows = max(8, logits // (classes * size[1]))
    how = (align_corners, images.dtype, images.device)
    return cut(height, size[0], rows, *how), cut(width, size[1], band, *how)


@lru_cache(maxsize=64)
def cut(
    small: int, large: int, step: int, align_corners: bool, dtype: torch.dtype, device: torch.device
) -> list[Piece]:
    """Linear interpolation from `small` to `large` pixels, in pieces of `step` output pixels."""
    unit = torch.eye(small, dtype=torch.float64, device=device)[None]
    matrix = F.interpolate(unit, large, mode="linear", align_corners=align_corners)[0]
    matrix = matrix.T.to(dtype)
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
    """Output pixel y lies at source position max(0, y * scale + shift)."""
    if align_corners:
        return (small - 1) / max(large - 1, 1), 0.0
    return small / large, (small / large - 1) / 2


def widen(images: torch.Tensor, columns: list[Piece]) -> torch.Tensor:
    """Upsample along rows: (N,K,h,w) -> (N,K,h,W)."""
    flat = images.flatten(0, 2)
    wide = images.new_empty(len(flat), columns[-1].pixels.stop)
    for pixels, sources, matrix in columns:
        torch.mm(flat[:, sources], matrix.T, out=wide[:, pixels])
    return wide.unflatten(0, images.shape[:3])


def narrow(wide: torch.Tensor, columns: list[Piece], images: torch.Tensor) -> None:
    """Transpose of widen: add (N,K,h,W) to images (N,K,h,w), in place."""
    for pixels, sources, matrix in columns:
        images[..., sources] += wide[..., pixels] @ matrix


@contextmanager
def setting(switches: Any, name: str, value: Any) -> Iterator[None]:
    """Set a global switch of PyTorch within the context."""
    before = getattr(switches, name)
    setattr(switches, name, value)
    try:
        yield
    finally:
        setattr(switches, name, before)


# For programs that allow TF32, which has 10 mantissa bits, in matrix products on a GPU.
exact_products = partial(setting, torch.backends.cuda.matmul, "fp32_precision", "ieee")


def in_float32(logits: torch.Tensor) -> torch.Tensor:
    """Half precision -> float32; float32 and float64 stay."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def kernel_for(logits: torch.Tensor, load: Callable[[], Callable]) -> Callable | None:
    """The Triton kernel of `load`, which tests it, for logits on a GPU; else None."""
    possible = logits.device.type == "cuda" and logits.dtype != torch.float64
    return loaded(load) if possible else None


@lru_cache
def loaded(load: Callable[[], Callable]) -> Callable | None:
    """load(), or None with one message if it fails."""
    try:
        return load()
    except Exception as error:  # Triton's first launch runs a C compiler, which can fail in any way
        what = f"{load.__module__.rpartition('.')[2]} runs without Triton, which is slower"
        print(f"{what} ({error!r:.200})", file=sys.stderr)
        return None
