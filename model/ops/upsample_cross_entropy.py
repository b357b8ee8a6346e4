"""Cross entropy of logits at the model's stride against labels at full size, some rows at a time.

Upsampling is linear: a slab of rows is upsampled by two small matrix products, gives its part of
the loss and, by the same matrices transposed, of the gradient, and is forgotten. This file needs
torch and nothing else.
"""

from math import floor, log
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

SLAB = 1 << 19  # logits upsampled at once on a CPU, as its caches hold;
WHOLE = 1 << 26  # on another device, to have it busy: an image of 19 x 1024x2048
BAND = 128  # columns made by one product on a CPU


@torch.compiler.disable
def upsample_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    class_weights: torch.Tensor | None = None,
    ignore_index: int = 255,
    label_smoothing: float = 0.0,
    align_corners: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(N,K,h,w) logits, (N,H,W) integer labels -> (loss_sum, weight_sum), two scalars.

    The bilinearly upsampled logits' cross entropy is summed over the labelled pixels, each times
    its class's weight; weight_sum is the sum of those weights (their number without weights).
    Sums, not a mean, so that several micro-batches or processes add up to one exact mean. With no
    labelled pixel both are 0, and so is the gradient. label_smoothing: F.cross_entropy's.

    In float32 at least, always in the same order of additions; differentiable once, by logits.
    IndexError or RuntimeError where a label is neither a class nor ignore_index.
    """
    weights = logits.new_ones(logits.shape[1]) if class_weights is None else class_weights
    wanted = torch.is_grad_enabled() and logits.requires_grad
    with torch.autocast(logits.device.type, enabled=False):
        return UpsampleCrossEntropy.apply(
            logits, labels, weights, ignore_index, label_smoothing, align_corners, wanted
        )


def upsample_cross_entropy_reference(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    class_weights: torch.Tensor | None = None,
    ignore_index: int = 255,
    label_smoothing: float = 0.0,
    align_corners: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What upsample_cross_entropy must give; holds three tensors of full-size logits."""
    full = F.interpolate(
        in_float32(logits), labels.shape[-2:], mode="bilinear", align_corners=align_corners
    )
    weights = full.new_ones(full.shape[1]) if class_weights is None else class_weights
    target = labels.long()
    loss_sum = F.cross_entropy(
        full,
        target,
        weight=weights,
        ignore_index=ignore_index,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    return loss_sum, weights[target[target != ignore_index]].sum()


@torch.no_grad()
def hard_pixels(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    threshold: float,
    min_kept: int,
    ignore_index: int = 255,
    align_corners: bool = False,
) -> torch.Tensor:
    """(N,K,h,w), (N,H,W) -> labels in which the pixels already learned are ignore_index.

    Online hard example mining (Shrivastava et al., arXiv 1604.03540), by the loss of the upsampled
    logits: kept are pixels whose class has a probability of at most `threshold`, and the `min_kept`
    worst of the batch in any case, with all that equal the last of them.
    """
    images = in_float32(logits)
    rows, columns = make_pieces(images, labels.shape[1:], align_corners)
    losses = images.new_empty(labels.shape)
    for number, image in enumerate(images):
        wide = widen(image, columns)
        for pixels, sources, matrix in rows:
            valid, own = valid_classes(labels[number, pixels], ignore_index)
            slab = matrix @ wide[:, sources]
            loss = slab.logsumexp(0) - slab.gather(0, own[None])[0]
            losses[number, pixels] = loss.where(valid, -1.0)  # below every labelled pixel's
    limit = losses.new_tensor(-log(threshold))
    if min_kept > 0:
        rank = max(1, losses.numel() + 1 - min_kept)
        limit = torch.minimum(limit, losses.flatten().kthvalue(rank).values)
    return labels.masked_fill(losses < limit, ignore_index)


class UpsampleCrossEntropy(torch.autograd.Function):
    """Computes the gradient together with the loss, while a slab's softmax is at hand."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        labels: torch.Tensor,
        class_weights: torch.Tensor,
        ignore_index: int,
        label_smoothing: float,
        align_corners: bool,
        wanted: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        images = in_float32(logits)
        weights = class_weights.to(images.dtype)
        rows, columns = make_pieces(images, labels.shape[1:], align_corners)
        gradients = images.new_zeros(images.shape if wanted else 0)
        sums = images.new_zeros(2, dtype=torch.float64)
        for number, image in enumerate(images):
            wide = widen(image, columns)
            wide_gradient = torch.zeros_like(wide) if wanted else wide
            for pixels, sources, matrix in rows:
                slab = matrix @ wide[:, sources]
                valid, own = valid_classes(labels[number, pixels], ignore_index)
                sums += slab_loss(slab, valid, own, weights, label_smoothing, wanted)
                if wanted:
                    wide_gradient[:, sources] += matrix.T @ slab
            if wanted:
                for pixels, sources, matrix in columns:
                    gradients[number, :, :, sources] += wide_gradient[:, :, pixels] @ matrix
        ctx.save_for_backward(gradients)
        ctx.dtype = logits.dtype
        loss_sum, weight_sum = sums.to(images.dtype).unbind()
        ctx.mark_non_differentiable(weight_sum)
        return loss_sum, weight_sum

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_loss_sum: torch.Tensor, _: torch.Tensor) -> tuple:
        (gradients,) = ctx.saved_tensors
        return (gradients * of_loss_sum).to(ctx.dtype), *[None] * 6


def slab_loss(
    slab: torch.Tensor,
    valid: torch.Tensor,
    own: torch.Tensor,
    weights: torch.Tensor,
    label_smoothing: float,
    wanted: bool,
) -> torch.Tensor:
    """(K,R,W) logits z and the pixels' classes -> (loss_sum, weight_sum); z becomes its gradient.

    With q_k the weighted share of class k in a pixel, its loss is sum_k q_k (log sum_j e^z_j - z_k)
    and the gradient of that by z_k is (sum_j q_j) softmax_k - q_k.
    """
    weight = weights[own] * valid
    target = mass = weight * (1 - label_smoothing)
    slab -= slab.amax(0)
    loss = -(target * slab.gather(0, own[None])[0]).sum()
    if label_smoothing:
        smooth = weights * (label_smoothing / len(weights))
        mass = target + smooth.sum() * valid
        loss -= (torch.tensordot(smooth, slab, 1) * valid).sum()
    total = slab.exp_().sum(0)
    loss += (mass * total.log()).sum()
    if wanted:
        slab *= mass / total
        slab.scatter_add_(0, own[None], -target[None])
        if label_smoothing:
            slab -= smooth[:, None, None] * valid
    return torch.stack([loss, weight.sum()])


def valid_classes(labels: torch.Tensor, ignore_index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which pixels count, and every pixel's class, 0 where it does not count."""
    valid = labels != ignore_index
    return valid, labels.long().where(valid, 0)


def in_float32(logits: torch.Tensor) -> torch.Tensor:
    """float32 for half precision; float64 stays."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


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
    band = BAND if on_cpu else size[1]
    rows = max(8, (SLAB if on_cpu else WHOLE) // (classes * size[1]))
    return (
        cut(images, height, size[0], rows, align_corners),
        cut(images, width, size[1], band, align_corners),
    )


def cut(like: torch.Tensor, small: int, large: int, step: int, align_corners: bool) -> list[Piece]:
    """Linear interpolation from `small` to `large` pixels, `step` of these to a piece."""
    unit = torch.eye(small, dtype=like.dtype, device=like.device)[None]
    matrix = F.interpolate(unit, large, mode="linear", align_corners=align_corners)[0].T
    scale = (small - 1) / max(large - 1, 1) if align_corners else small / large
    shift = 0.0 if align_corners else (scale - 1) / 2
    pieces = []
    for start in range(0, large, step):
        stop = min(start + step, large)
        first, last = (floor(pixel * scale + shift) for pixel in (start, stop - 1))
        # A neighbour more on both sides: rounding may put a pixel just beyond its source.
        sources = slice(max(0, first - 1), min(small, last + 3))
        pixels = slice(start, stop)
        pieces.append(Piece(pixels, sources, matrix[pixels, sources].contiguous()))
    return pieces


def widen(image: torch.Tensor, columns: list[Piece]) -> torch.Tensor:
    """(K,h,w) -> (K,h,W)."""
    return torch.cat([image[:, :, sources] @ m.T for _, sources, m in columns], 2)
