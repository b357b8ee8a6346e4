"""Cross entropy of upsampled logits, loss and gradient, in one Triton kernel.

The caller upsamples the columns before by a matrix product, and downsamples their gradient after.
A program computes the output rows between two adjacent rows of the logits and keeps its sums in
registers, so it writes no full-size logits, and the order of additions is always the same.
"""

from functools import lru_cache
from math import log

import torch
import triton
from triton import language as tl

from model.ops.bilinear import scale_and_shift

ELEMENTS = 1024  # classes times columns per program: 244 us on an H200; 2048: 253 us
SMALL = -1e30  # logit of the classes that pad their number to a power of two


@triton.jit(do_not_specialize=["classes", "height", "width", "out_height", "ignore"])
def kernel(
    wide, labels, weights, smooth, starts, from_top, from_below, losses, counted,
    classes, height, width, out_height, scale, shift, kept, ignore,
    WEIGHTED: tl.constexpr, SMOOTH: tl.constexpr, WANTED: tl.constexpr,
    KINDS: tl.constexpr, COLUMNS: tl.constexpr, SMALL: tl.constexpr,
):  # fmt: skip
    """Output rows starts[row] to starts[row + 1] - 1, between logit rows `row` and row + 1."""
    image, row = tl.program_id(2).to(tl.int64), tl.program_id(1)
    kind, x = tl.arange(0, KINDS), tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    real, inside = (kind < classes)[:, None], x < width
    mask = real & inside[None, :]
    line = (image * classes + kind[:, None]) * height
    here = (line + row) * width + x[None, :]
    below = (line + tl.minimum(row + 1, height - 1)) * width + x[None, :]
    # Base 2, because GPUs compute exp2 in hardware.
    first = tl.where(real, tl.load(wide + here, mask, 0.0) * 1.4426950408889634, SMALL)
    second = tl.where(real, tl.load(wide + below, mask, 0.0) * 1.4426950408889634, SMALL)
    if SMOOTH:
        shares = tl.load(smooth + kind, kind < classes, 0.0)
        share, shares_sum = shares[:, None], tl.sum(shares, 0)
    top_gradient = tl.zeros((KINDS, COLUMNS), tl.float32)
    below_gradient = tl.zeros((KINDS, COLUMNS), tl.float32)
    loss, count = tl.zeros((COLUMNS,), tl.float32), tl.zeros((COLUMNS,), tl.float32)
    for y in range(tl.load(starts + row), tl.load(starts + row + 1)):
        part = tl.maximum(y * scale + shift, 0.0) - row
        logits = (1 - part) * first + part * second
        own = tl.load(labels + (image * out_height + y) * width + x, inside, 0).to(tl.int32)
        valid = inside & (own != ignore)
        known = valid & (own >= 0) & (own < classes)
        weight = known.to(tl.float32)
        if WEIGHTED:
            weight *= tl.load(weights + own, known, 0.0)
        target = weight * kept
        mass = target
        is_own = kind[:, None] == own[None, :]
        largest = tl.max(logits, 0)
        powers = tl.exp2(logits - largest[None, :])
        total = tl.sum(powers, 0)
        found = target * tl.sum(tl.where(is_own, logits, 0.0), 0)
        if SMOOTH:
            mass += valid.to(tl.float32) * shares_sum
            found += valid.to(tl.float32) * tl.sum(tl.where(real, share * logits, 0.0), 0)
        value = mass * (largest + tl.log2(total)) - found
        loss += tl.where(valid & ~known, float("nan"), value)
        count += weight
        if WANTED:
            gradient = powers * (mass / total)[None, :] - tl.where(is_own, target[None, :], 0.0)
            if SMOOTH:
                gradient -= tl.where(real, share * valid.to(tl.float32)[None, :], 0.0)
            top_gradient += (1 - part) * gradient
            below_gradient += part * gradient
    if WANTED:
        tl.store(from_top + here, top_gradient, mask)
        tl.store(from_below + here, below_gradient, mask)
    number = (image * height + row) * tl.num_programs(0) + tl.program_id(0)
    tl.store(losses + number, tl.sum(tl.where(inside, loss, 0.0), 0))
    tl.store(counted + number, tl.sum(count, 0))


@lru_cache(maxsize=64)
def row_starts(
    small: int, large: int, scale: float, shift: float, device: torch.device
) -> torch.Tensor:
    """(small+1,) int32: first output row whose source position is at or after each logit row."""
    rows = torch.arange(large, dtype=torch.float64, device=device)
    tops = (rows * scale + shift).clamp(0, small - 1).floor()
    numbers = torch.arange(small + 1, dtype=torch.float64, device=device)
    return torch.searchsorted(tops, numbers).to(torch.int32)


def triton_cross_entropy(
    wide: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor | None,
    *,
    ignore_index: int,
    label_smoothing: float,
    align_corners: bool,
    wanted: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(N,K,h,W) float32 logits of full width, (N,H,W) labels -> (2,) sums in float64, gradient.

    The sums are those of upsample_cross_entropy. The gradient is that of the loss by `wide`, in its
    shape, or None if not `wanted`. A label that is no class makes the loss NaN.
    """
    wide, labels = wide.contiguous(), labels.contiguous()
    count, classes, height, width = wide.shape
    kinds = triton.next_power_of_2(classes)
    columns = max(16, ELEMENTS // kinds)
    grid = (triton.cdiv(width, columns), height, count)
    scale, shift = scale_and_shift(height, labels.shape[1], align_corners)
    starts = row_starts(height, labels.shape[1], scale, shift, wide.device)
    smooth = wide.new_ones(classes) if weights is None else weights
    smooth = smooth * (label_smoothing / classes)
    from_top, from_below = (torch.empty_like(wide) if wanted else wide for _ in range(2))
    sums = wide.new_empty(2, count * height * grid[0])
    with torch.cuda.device_of(wide):
        kernel[grid](
            wide, labels, wide if weights is None else weights, smooth, starts, from_top,
            from_below, sums[0], sums[1], classes, height, width, labels.shape[1], scale, shift,
            1 - label_smoothing, ignore_index,
            WEIGHTED=weights is not None, SMOOTH=label_smoothing > 0, WANTED=wanted, KINDS=kinds,
            COLUMNS=columns, SMALL=SMALL, num_warps=max(4, kinds // 32),
        )  # fmt: skip
    totals = sums.sum(1, dtype=torch.float64)
    totals[0] *= log(2)
    if not wanted:
        return totals, None
    from_top[:, :, 1:] += from_below[:, :, :-1]
    from_top[:, :, -1] += from_below[:, :, -1]
    return totals, from_top
