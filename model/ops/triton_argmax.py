"""Upsampling and argmax in one Triton kernel, which reads small logits and writes labels."""

import torch
import triton
from triton import language as tl

from model.ops.bilinear import scale_and_shift

ROWS, COLUMNS = 8, 128  # pixels per program


# Else Triton compiles separate kernels for sizes of 1, multiples of 16, and all others.
@triton.jit(do_not_specialize=["height", "width", "out_height", "out_width", "batch_step"])
def kernel(
    logits, labels, classes, height, width, out_height, out_width,
    batch_step, class_step, row_step, column_step,
    scale_y, scale_x, shift_y, shift_x,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Label ROWS x COLUMNS pixels of one image; source position: max(0, pixel * scale + shift)."""
    image = tl.program_id(2).to(tl.int64)
    y = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    x = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    source_y = tl.maximum(y.to(tl.float32) * scale_y + shift_y, 0.0)
    source_x = tl.maximum(x.to(tl.float32) * scale_x + shift_x, 0.0)
    top = tl.minimum(source_y.to(tl.int32), height - 1)
    left = tl.minimum(source_x.to(tl.int32), width - 1)
    below, right = tl.minimum(top + 1, height - 1), tl.minimum(left + 1, width - 1)
    wy, wx = (source_y - top)[:, None], (source_x - left)[None, :]
    at_top = logits + image * batch_step + top[:, None] * row_step
    at_below = logits + image * batch_step + below[:, None] * row_step
    at_left, at_right = left[None, :] * column_step, right[None, :] * column_step
    best = tl.full((ROWS, COLUMNS), float("-inf"), tl.float32)
    label = tl.zeros((ROWS, COLUMNS), tl.int32)
    for kind in range(classes):
        of_class = kind * class_step
        top_left = tl.load(at_top + of_class + at_left).to(tl.float32)
        top_right = tl.load(at_top + of_class + at_right).to(tl.float32)
        below_left = tl.load(at_below + of_class + at_left).to(tl.float32)
        below_right = tl.load(at_below + of_class + at_right).to(tl.float32)
        value = (1 - wy) * ((1 - wx) * top_left + wx * top_right) + wy * (
            (1 - wx) * below_left + wx * below_right
        )
        better = (value > best) | ((value != value) & (best == best))  # NaN wins, as in argmax
        label = tl.where(better, kind, label)
        best = tl.where(better, value, best)
    inside = (y < out_height)[:, None] & (x < out_width)[None, :]
    place = (image * out_height + y[:, None]) * out_width + x[None, :]
    tl.store(labels + place, label.to(tl.uint8), mask=inside)


def triton_argmax(
    logits: torch.Tensor, size: tuple[int, int], *, align_corners: bool
) -> torch.Tensor:
    """As upsample_argmax, for logits in float32 or half precision."""
    count, classes, height, width = logits.shape
    labels = logits.new_empty(count, *size, dtype=torch.uint8)
    (scale_y, shift_y), (scale_x, shift_x) = (
        scale_and_shift(*lengths, align_corners)
        for lengths in zip((height, width), size, strict=True)
    )
    grid = (triton.cdiv(size[1], COLUMNS), triton.cdiv(size[0], ROWS), count)
    with torch.cuda.device_of(logits):
        kernel[grid](
            logits, labels, classes, height, width, *size, *logits.stride(),
            scale_y, scale_x, shift_y, shift_x, ROWS=ROWS, COLUMNS=COLUMNS,
        )  # fmt: skip
    return labels
