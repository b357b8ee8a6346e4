"""Cross entropy of logits at the model's stride against labels at full size, a few rows at a time.

Upsampling is linear: small matrix products upsample a few rows, which give a part of the loss and,
by the transposed matrices, a part of the gradient; then the rows are freed. If logits and labels
have the same size, F.cross_entropy does the work. This file needs only bilinear.py and torch, and
triton_cross_entropy.py on NVIDIA GPUs.
"""

from collections.abc import Callable
from math import log
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from model.ops.bilinear import (
    at_once,
    exact_products,
    in_float32,
    kernel_for,
    make_pieces,
    narrow,
    widen,
)


def upsample_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    class_weights: torch.Tensor | None = None,
    pixel_weights: torch.Tensor | None = None,
    ignore_index: int = 255,
    label_smoothing: float = 0.0,
    align_corners: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(N,K,h,w) logits, (N,H,W) integer labels -> (loss_sum, weight_sum), two scalars.

    loss_sum: cross entropy of the bilinearly upsampled logits, summed over the labelled pixels and
    weighted by class and by pixel_weights, (N,H,W); weight_sum: sum of these weights, or number of
    pixels without weights. Sums, not a mean, so that several micro-batches or processes add up to
    one exact mean. Without labelled pixels both sums and the gradient are 0. label_smoothing: as in
    F.cross_entropy.

    Computes in float32 or float64, deterministically; differentiable once, by logits. A label that
    is neither a class nor ignore_index is an IndexError; on a GPU it gives NaN or a CUDA assertion.
    """
    if logits.shape[-2:] == labels.shape[-2:]:
        return plain_cross_entropy(
            in_float32(logits), labels, class_weights, pixel_weights, ignore_index, label_smoothing
        )
    apply = UpsampleCrossEntropy.apply
    if torch.compiler.is_compiling():  # else the compiler unrolls the loop over slabs
        apply = torch.compiler.disable(apply)
    wanted = torch.is_grad_enabled() and logits.requires_grad
    with torch.autocast(logits.device.type, enabled=False):
        return apply(
            logits, labels, class_weights, pixel_weights, ignore_index, label_smoothing,
            align_corners, wanted,
        )  # fmt: skip


def upsample_cross_entropy_reference(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    class_weights: torch.Tensor | None = None,
    pixel_weights: torch.Tensor | None = None,
    ignore_index: int = 255,
    label_smoothing: float = 0.0,
    align_corners: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The result that upsample_cross_entropy must equal; holds three tensors of full size."""
    full = F.interpolate(
        in_float32(logits), labels.shape[-2:], mode="bilinear", align_corners=align_corners
    )
    how = (class_weights, pixel_weights, ignore_index, label_smoothing)
    return plain_cross_entropy(full, labels, *how)


def plain_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    class_weights: torch.Tensor | None,
    pixel_weights: torch.Tensor | None,
    ignore_index: int,
    label_smoothing: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """upsample_cross_entropy for logits and labels of the same size."""
    weights = None if class_weights is None else class_weights.to(logits.dtype)
    loss = F.cross_entropy(
        logits,
        labels.long(),
        weight=weights,
        ignore_index=ignore_index,
        reduction="sum" if pixel_weights is None else "none",
        label_smoothing=label_smoothing,
    )
    valid, own = valid_classes(labels, ignore_index)
    weight = valid.to(logits.dtype) if weights is None else valid * weights.take(own)
    if pixel_weights is not None:
        loss, weight = (loss * pixel_weights).sum(), weight * pixel_weights
    return loss, weight.sum()


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
    """(N,K,h,w) logits, (N,H,W) labels -> labels with ignore_index at easy pixels.

    Online hard example mining (Shrivastava et al., arXiv 1604.03540) by the loss of the upsampled
    logits: keeps pixels whose true class has a probability of at most `threshold`, but at least the
    `min_kept` pixels of the batch with the highest loss, and all pixels that tie with the last.
    """
    losses = pixel_losses(logits, labels, ignore_index, align_corners)
    limit = torch.full_like(losses[0, 0, 0], -log(threshold))
    if min_kept > 0:
        limit = torch.minimum(limit, highest(losses.view(1, -1), min_kept)[0])
    return labels.masked_fill(losses < limit, ignore_index)


@torch.no_grad()
def hardest_pixels(
    logits: torch.Tensor,
    labels: torch.Tensor,
    pixel_weights: torch.Tensor,
    *,
    share: float,
    ignore_index: int = 255,
) -> torch.Tensor:
    """(N,K,h,w) logits, (N,H,W) labels and weights -> labels with ignore_index except at the pixels
    of each image with the highest weighted losses, `share` of its pixels, and those that tie."""
    losses = pixel_losses(logits, labels, ignore_index, align_corners=False) * pixel_weights
    limits = highest(losses.flatten(1), int(share * losses[0].numel()))
    return labels.masked_fill(losses < limits[:, None, None], ignore_index)


@exact_products()
def pixel_losses(
    logits: torch.Tensor, labels: torch.Tensor, ignore_index: int, align_corners: bool
) -> torch.Tensor:
    """(N,H,W) losses of the upsampled logits; -1, which is below all others, at ignored pixels."""
    images = in_float32(logits)
    rows, columns = make_pieces(images, labels.shape[1:], align_corners)
    losses = images.new_empty(labels.shape)
    for part in at_once(images):
        wide = widen(images[part], columns)
        for pixels, sources, matrix in rows:
            valid, own = valid_classes(labels[part, pixels], ignore_index)
            slab = matrix @ wide[:, :, sources]
            loss = slab.logsumexp(1) - slab.gather(1, own[:, None])[:, 0]
            losses[part, pixels] = loss.where(valid, -1.0)
    return losses


def highest(values: torch.Tensor, number: int) -> torch.Tensor:
    """(R,n) -> (R,): the smallest of the `number` highest values of each row."""
    kept = min(max(1, number), values.shape[1])
    if values.device.type == "cpu":  # kthvalue is fastest there, but slow on a GPU
        return values.kthvalue(values.shape[1] + 1 - kept)[0]
    return values.topk(kept, sorted=False)[0].amin(1)


def load_kernel() -> Callable:
    from model.ops.triton_cross_entropy import triton_cross_entropy  # only Linux wheels have Triton

    wide, labels = torch.zeros(1, 2, 2, 4, device="cuda"), torch.zeros(1, 4, 4, device="cuda")
    how = {"ignore_index": 255, "label_smoothing": 0.0, "align_corners": False, "wanted": True}
    triton_cross_entropy(wide, labels.byte(), None, **how)
    return triton_cross_entropy


class UpsampleCrossEntropy(torch.autograd.Function):
    """Computes the gradient together with the loss, because both need the softmax."""

    @staticmethod
    @exact_products()
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        labels: torch.Tensor,
        class_weights: torch.Tensor | None,
        pixel_weights: torch.Tensor | None,
        ignore_index: int,
        label_smoothing: float,
        align_corners: bool,
        wanted: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        images = in_float32(logits)
        weights = None if class_weights is None else class_weights.to(images.dtype)
        rows, columns = make_pieces(images, labels.shape[1:], align_corners)
        gradients = images.new_zeros(images.shape if wanted else 0)
        sums = images.new_zeros(2, dtype=torch.float64)
        kernel = kernel_for(images, load_kernel) if pixel_weights is None else None
        if images.device.type == "cpu":
            low, high = labels.masked_fill(labels == ignore_index, 0).aminmax()
            if low < 0 or high >= images.shape[1]:
                known = f"{images.shape[1]} classes"
                raise IndexError(f"labels {low} to {high} are out of range for {known}")
        if kernel is not None:
            how = {"ignore_index": ignore_index, "label_smoothing": label_smoothing}
            how |= {"align_corners": align_corners, "wanted": wanted}
            sums, wide_gradient = kernel(widen(images, columns), labels, weights, **how)
            if wanted:
                narrow(wide_gradient, columns, gradients)
        for part in at_once(images) if kernel is None else ():
            target, binary = labels[part], images[part] / log(2)  # exp2 takes half the time of exp
            binary -= binary.amax(1, keepdim=True)
            wide = widen(binary, columns)
            wide_gradient = torch.zeros_like(wide) if wanted else wide
            for pixels, sources, matrix in rows:
                slab = matrix @ wide[:, :, sources]
                valid, own = valid_classes(target[:, pixels], ignore_index)
                counted = valid.to(slab.dtype)
                if pixel_weights is not None:
                    counted *= pixel_weights[part, pixels]
                sums += slab_loss(slab, counted, own, weights, label_smoothing, wanted)
                if wanted:
                    wide_gradient[:, :, sources] += matrix.T @ slab
            if wanted:
                narrow(wide_gradient, columns, gradients[part])
        ctx.save_for_backward(gradients)
        ctx.dtype = logits.dtype
        loss_sum, weight_sum = sums.to(images.dtype).unbind()
        ctx.mark_non_differentiable(weight_sum)
        return loss_sum, weight_sum

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_loss_sum: torch.Tensor, _: torch.Tensor) -> tuple:
        (gradients,) = ctx.saved_tensors
        return (gradients * of_loss_sum).to(ctx.dtype), *[None] * 7


def slab_loss(
    slab: torch.Tensor,
    counted: torch.Tensor,
    own: torch.Tensor,
    weights: torch.Tensor | None,
    label_smoothing: float,
    wanted: bool,
) -> torch.Tensor:
    """(N,K,R,W) logits z / ln 2, (N,R,W) pixel weights, 0 for ignored pixels, and classes ->
    (loss_sum, weight_sum); slab becomes the gradient.

    If q_k is the weighted target of class k at a pixel, the loss is sum_k q_k (log sum_j e^z_j -
    z_k), and its gradient by z_k is (sum_j q_j) softmax_k - q_k. Base 2, because exp2 takes half
    the time of exp on a CPU.
    """
    weight = counted if weights is None else counted * weights.take(own)
    target = mass = weight * (1 - label_smoothing)
    slab -= slab.amax(1, keepdim=True)
    loss = -(target * slab.gather(1, own[:, None])[:, 0]).sum()
    if label_smoothing:
        classes = slab.shape[1]
        smooth = slab.new_ones(classes) if weights is None else weights
        smooth = smooth * (label_smoothing / classes)
        mass = target + smooth.sum() * counted
        loss -= ((smooth @ slab.flatten(2)).view(counted.shape) * counted).sum()
    total = slab.exp2_().sum(1)
    loss += (mass * total.log2()).sum()
    if wanted:
        slab *= (mass / total)[:, None]
        slab.scatter_add_(1, own[:, None], -target[:, None])
        if label_smoothing:
            slab -= smooth[:, None, None] * counted[:, None]
    return torch.stack([loss * log(2), weight.sum()])


def valid_classes(labels: torch.Tensor, ignore_index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mask of the pixels that count, and the class of every pixel, 0 where it does not count."""
    valid = labels != ignore_index
    return valid, labels.where(valid, 0).long()
