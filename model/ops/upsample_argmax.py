"""Logits at the model's stride -> the most likely class at full size, without full-size logits.

A bilinear value between four adjacent logits is a convex combination of them. So a class that wins
at all four corners of a cell wins everywhere in the cell. Only the other cells are computed, and
only for the classes that can win there. This file needs only bilinear.py, torch and numpy, and
triton_argmax.py on NVIDIA GPUs.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from model.ops.bilinear import in_float32, kernel_for

MIXED = 0.35  # share of cells without a common winner above which computing all pixels is faster
CELL = 8  # side of a cell in pixels
PIXELS = 1 << 18  # pixels computed at once; they fit into the caches
SLAB_ROWS = 32  # rows computed at once by all_pixels
PRODUCT_COLUMNS = 128  # columns of each matrix product in all_pixels


def upsample_argmax(
    logits: torch.Tensor, size: tuple[int, int], *, align_corners: bool = False
) -> torch.Tensor:
    """(N,K,h,w) logits -> (N,H,W) uint8 classes: bilinear to `size` = (H,W), then argmax; K <= 256.

    Equals upsample_argmax_reference except for ties within rounding. On a CPU 60 times as fast for
    logits of objects, 10 times for noise, with a tenth of the memory; on an NVIDIA GPU one Triton
    kernel, 14 times as fast (docs/results.md); on other devices it calls the reference.
    """
    if logits.shape[-2:] == tuple(size):
        return in_float32(logits.detach()).argmax(1).to(torch.uint8)
    kernel = kernel_for(logits, load_kernel)
    if kernel is not None:
        return kernel(logits.detach(), size, align_corners=align_corners)
    wide = in_float32(logits.detach())
    if wide.device.type != "cpu" or not np.isfinite(wide.numpy().sum()):  # argmax must find a NaN
        return upsample_argmax_reference(logits, size, align_corners=align_corners)
    small = tuple(wide.shape[2:])
    # Divides large cells; a finer grid that contains the old grid does not change the result.
    parts = max(1, round(min(size[0] / small[0], size[1] / small[1]) / CELL))
    if parts > 1:
        finer = [(length - 1) * parts + 1 for length in small]
        wide = F.interpolate(wide, finer, mode="bilinear", align_corners=True)
    rows, columns = (
        make_axis(*lengths, parts, align_corners=align_corners)
        for lengths in zip(small, size, strict=True)
    )
    labels = [fast_argmax(image, rows, columns) for image in wide.contiguous().numpy()]
    return torch.from_numpy(np.stack(labels))


def load_kernel() -> Callable:
    from model.ops.triton_argmax import triton_argmax  # only Linux wheels have Triton

    triton_argmax(torch.zeros(1, 2, 2, 2, device="cuda"), (4, 4), align_corners=False)
    return triton_argmax


def upsample_argmax_reference(
    logits: torch.Tensor, size: tuple[int, int], *, align_corners: bool = False
) -> torch.Tensor:
    """The result that upsample_argmax must equal, in two lines.

    Computes in float32 or float64, because bfloat16 would cause ties between classes.
    """
    full = F.interpolate(in_float32(logits), size, mode="bilinear", align_corners=align_corners)
    return full.argmax(1).to(torch.uint8)


class Axis(NamedTuple):
    """Rows or columns of the output: (1 - weight) * source[first] + weight * source[second].

    A cell is the pixels between two adjacent sources; the pixels before the first source or after
    the last may form several cells.
    """

    first: np.ndarray  # (H,)
    second: np.ndarray  # (H,)
    weight: np.ndarray  # (H,) float32
    pixels: np.ndarray  # (cells,span) pixels of each cell, padded with its last pixel


@lru_cache(maxsize=16)
def make_axis(small: int, large: int, parts: int, *, align_corners: bool) -> Axis:
    """PyTorch's bilinear interpolation from `small` to `large` pixels.

    parts: number of parts into which upsample_argmax divided the distance between two sources.
    """
    places = np.arange(large, dtype=np.float32)
    if align_corners:
        source = places * np.float32((small - 1) / max(large - 1, 1))
    else:
        source = (places + np.float32(0.5)) * np.float32(small / large) - np.float32(0.5)
    last = (small - 1) * parts
    source = np.clip(source * np.float32(parts), -1, last)
    cell = np.floor(source).astype(np.intp)  # -1 before the first source
    source, first = np.maximum(source, 0), np.maximum(cell, 0)
    second = np.clip(cell + 1, 0, last)
    _, start, index, count = np.unique(
        cell, return_index=True, return_inverse=True, return_counts=True
    )
    longest = count[1:-1].max(initial=1)  # not of the border cells, which may be much longer
    piece = index * large + (np.arange(large) - start[index]) // longest
    _, start, count = np.unique(piece, return_index=True, return_counts=True)
    pixels = start[:, None] + np.minimum(np.arange(count.max()), count[:, None] - 1)
    return Axis(first, second, (source - first).astype(np.float32), pixels)


def fast_argmax(logits: np.ndarray, rows: Axis, columns: Axis) -> np.ndarray:
    """(K,h,w) -> (H,W) uint8."""
    best, winner = logits[0].copy(), np.zeros(logits.shape[1:], np.uint8)
    for kind in range(1, len(logits)):  # a loop is several times as fast as np.argmax
        take_better(logits[kind], best, winner, np.uint8(kind))
    (top, below), (left, right) = (
        (axis.first[axis.pixels[:, 0]], axis.second[axis.pixels[:, 0]]) for axis in (rows, columns)
    )
    corners = winner[np.ix_(top, left)]
    mixed = np.zeros(corners.shape, bool)
    for y, x in ((top, right), (below, left), (below, right)):
        mixed |= winner[np.ix_(y, x)] != corners
    if mixed.mean() > MIXED:
        return all_pixels(logits, rows, columns)
    labels = np.take(winner, columns.first, axis=1)
    labels = np.take(labels, rows.first, axis=0)
    mixed_cells(logits, rows, columns, mixed, labels)
    return labels


def take_better(
    values: np.ndarray, best: np.ndarray, labels: np.ndarray, kind: np.ndarray | np.uint8
) -> None:
    """Where `values` exceed `best`, replace `best` by them and the label by `kind`, in place.

    Callers pass classes in ascending order, so the maximum of both labels is the later winner.
    """
    won = np.greater(values, best).view(np.uint8)
    won *= kind
    np.maximum(labels, won, out=labels)
    np.maximum(best, values, out=best)


def mixed_cells(
    logits: np.ndarray, rows: Axis, columns: Axis, mixed: np.ndarray, labels: np.ndarray
) -> None:
    """Compute, in place, `labels` in the cells where `mixed` (row cells, column cells) is True."""
    every_y, every_x = np.nonzero(mixed)
    at_once = max(1, PIXELS // (rows.pixels.shape[1] * columns.pixels.shape[1]))
    for start in range(0, len(every_y), at_once):
        y, x = (cells[start : start + at_once] for cells in (every_y, every_x))
        lines, places = rows.pixels[y, 0], columns.pixels[x, 0]
        corners = np.stack([
            logits[:, i, j]
            for i in (rows.first[lines], rows.second[lines])
            for j in (columns.first[places], columns.second[places])
        ])  # fmt: skip
        candidate = can_win(corners)
        count = candidate.sum(0)
        order = np.argsort(-count, kind="stable")  # cells with many candidates first
        many = np.searchsorted(-count[order], -2)  # most cells have two candidates
        for cells, best in ((order[:many], best_of_many), (order[many:], better_of_two)):
            if len(cells):
                ys, xs = rows.pixels[y[cells]].T, columns.pixels[x[cells]].T
                weights = rows.weight[ys], columns.weight[xs]
                found = best(corners[:, :, cells], candidate[:, cells], *weights)
                labels[ys[:, None], xs[None]] = found


def can_win(corners: np.ndarray) -> np.ndarray:
    """(4,K,n) logits at the corners of cells -> (K,n) bool, False where a class cannot win inside.

    A class cannot win if its highest corner is below another class's lowest corner, or if it is at
    all corners below the mean of the corners' winners, since one winner always reaches that mean.
    """
    winners = corners.argmax(1)  # (4,n)
    mean = sum(corners[:, winner, np.arange(len(winner))] for winner in winners) / 4  # (4,n)
    possible = corners.max(0) >= corners.min(0).max(0)
    return possible & (corners >= mean[:, None]).any(0)


def better_of_two(
    corners: np.ndarray, candidate: np.ndarray, wy: np.ndarray, wx: np.ndarray
) -> np.ndarray:
    """best_of_many for cells with two candidates: the sign of their difference decides."""
    first, cell = candidate.argmax(0), np.arange(candidate.shape[1])
    second = len(candidate) - 1 - candidate[::-1].argmax(0)
    won = interpolate(corners[:, second, cell] - corners[:, first, cell], wy, wx) > 0
    labels = won.view(np.uint8) * (second - first).astype(np.uint8)
    labels += first.astype(np.uint8)
    return labels


def interpolate(corners: np.ndarray, wy: np.ndarray, wx: np.ndarray) -> np.ndarray:
    """(4,n) values at corners, weights (Sy,n) and (Sx,n) -> (Sy,Sx,n)."""
    top_left, top_right, left, right = corners
    top = top_left + (top_right - top_left) * wx
    below = left + (right - left) * wx
    values = (below - top)[None] * wy[:, None]
    values += top[None]
    return values


def best_of_many(
    corners: np.ndarray, candidate: np.ndarray, wy: np.ndarray, wx: np.ndarray
) -> np.ndarray:
    """Winners inside n cells, sorted by descending number of candidates.

    corners (4,K,n), candidate (K,n), weights (Sy,n) and (Sx,n) -> (Sy,Sx,n) uint8.
    """
    count = candidate.sum(0)
    cell, kind = np.nonzero(candidate.T)  # by cell, then by class
    nth = np.arange(len(cell)) - np.repeat(np.cumsum(count) - count, count)
    kinds = np.zeros((count[0], len(count)), np.intp)  # nth candidate of each cell
    kinds[nth, cell] = kind
    shape = (len(wy), len(wx), len(count))
    best = np.full(shape, -np.inf, corners.dtype)
    labels = np.zeros(shape, np.uint8)
    for number in range(count[0]):
        n = int(np.searchsorted(-count, -number))  # cells with more than `number` candidates
        kind = kinds[number, :n]
        values = interpolate(corners[:, kind, np.arange(n)], wy[:, :n], wx[:, :n])
        take_better(values, best[..., :n], labels[..., :n], kind.astype(np.uint8))
    return labels


def all_pixels(logits: np.ndarray, rows: Axis, columns: Axis) -> np.ndarray:
    """Compute all pixels of all classes, in slabs of rows, by small matmuls in both directions."""
    classes, width = len(logits), len(columns.first)
    starts = range(0, width, PRODUCT_COLUMNS)
    bands = [band_matrix(columns, start, start + PRODUCT_COLUMNS) for start in starts]
    labels = np.zeros((len(rows.first), width), np.uint8)
    for start in range(0, len(labels), SLAB_ROWS):
        down, source = band_matrix(rows, start, start + SLAB_ROWS)
        lines = logits[:, source].reshape(-1, logits.shape[2])
        wide = np.concatenate([lines[:, inside] @ across.T for across, inside in bands], 1)
        wide = wide.reshape(classes, -1, width)
        part = labels[start : start + SLAB_ROWS]
        best = down @ wide[0]
        values = np.empty_like(best)
        for kind in range(1, classes):
            np.matmul(down, wide[kind], out=values)
            take_better(values, best, part, np.uint8(kind))
    return labels


def band_matrix(axis: Axis, start: int, stop: int) -> tuple[np.ndarray, slice]:
    """(pixels,sources) weights of the pixels start..stop-1, and the slice of these sources."""
    first, second, weight = (values[start:stop] for values in axis[:3])
    source = slice(first[0], second[-1] + 1)
    matrix = np.zeros((len(first), source.stop - source.start), weight.dtype)
    line = np.arange(len(first))
    matrix[line, first - source.start] = 1 - weight
    matrix[line, second - source.start] += weight
    return matrix, source
