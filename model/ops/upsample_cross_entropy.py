"""Cross entropy of logits at the model's stride against labels at full size, some rows at a time.

Upsampling is linear: a few rows are upsampled by small matrix products, give their part of the loss
and, by the same matrices transposed, of the gradient, and are forgotten. The loss alone takes fewer
exponentials on a CPU: between two rows of logits a class's logit is a straight line, so that its
exponential is a geometric progression. This file needs bilinear.py, torch and numpy, nothing else.
"""

from math import log
from typing import Any

import numpy as np
import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from model.ops.bilinear import Run, make_pieces, make_runs, widen

GAP = 100.0  # bits below the best class that exponentials of a progression can hold


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
    IndexError (on a GPU its assertion) where a label is neither a class nor ignore_index.
    """
    apply = UpsampleCrossEntropy.apply
    if torch.compiler.is_compiling():  # the loop over slabs would be unrolled
        apply = torch.compiler.disable(apply)
    wanted = torch.is_grad_enabled() and logits.requires_grad
    with torch.autocast(logits.device.type, enabled=False):
        return apply(
            logits, labels, class_weights, ignore_index, label_smoothing, align_corners, wanted
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
    """Computes the gradient together with the loss, while the softmax is at hand."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        labels: torch.Tensor,
        class_weights: torch.Tensor | None,
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
        on_cpu = images.device.type == "cpu"
        if on_cpu:
            check_labels(labels, images.shape[1], ignore_index)
        for number, image in enumerate(images):
            target, binary = labels[number], image / log(2)  # exp2 takes half of exp's time
            binary -= binary.amax(0)
            wide = widen(binary, columns)
            if on_cpu and not wanted and not label_smoothing and binary.amin() > -GAP:
                runs = make_runs(images.shape[2], labels.shape[1], align_corners)
                sums += loss_of_runs(wide, target, weights, ignore_index, runs)
                continue
            wide_gradient = torch.zeros_like(wide) if wanted else wide
            for pixels, sources, matrix in rows:
                slab = matrix @ wide[:, sources]
                valid, own = valid_classes(target[pixels], ignore_index)
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


def loss_of_runs(
    wide: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor | None,
    ignore_index: int,
    runs: list[Run],
) -> torch.Tensor:
    """(K,h,W) logits / ln 2, (H,W) labels -> (loss_sum, weight_sum), without a gradient.

    Within a run the exponentials 2^z of a row are those of the row before times 2^(step * slope).
    In numpy, whose calls on as much as a cache holds cost half of PyTorch's.
    """
    logits, truth, width = wide.numpy(), labels.numpy(), wide.shape[2]
    sums = np.zeros(2)
    for run in runs:
        block = truth[run.start : run.stop]
        valid = block != ignore_index
        own = np.where(valid, block, 0).astype(np.intp)
        weight = valid.astype(logits.dtype)
        if weights is not None:
            weight *= weights.numpy().take(own)
        own *= width
        own += np.arange(width)
        slope = logits[:, run.second] - logits[:, run.first]
        value = exp2(logits[:, run.first] + run.weight * slope)
        growth = exp2(run.step * slope)
        total, share = np.empty_like(weight), np.empty_like(weight)
        for row in range(run.stop - run.start):
            if row > 0:
                value *= growth
            np.add.reduce(value, 0, out=total[row])
            value.take(own[row], out=share[row], mode="clip")
        total /= share
        sums += np.vdot(weight, np.log(total, out=total)), weight.sum()
    return torch.from_numpy(sums)


def exp2(exponent: np.ndarray) -> np.ndarray:
    """PyTorch's: several times as fast as numpy's."""
    return torch.from_numpy(exponent).exp2_().numpy()


def slab_loss(
    slab: torch.Tensor,
    valid: torch.Tensor,
    own: torch.Tensor,
    weights: torch.Tensor | None,
    label_smoothing: float,
    wanted: bool,
) -> torch.Tensor:
    """(K,R,W) logits z / ln 2, pixels' classes -> (loss_sum, weight_sum); z becomes the gradient.

    With q_k the weighted share of class k in a pixel, its loss is sum_k q_k (log sum_j e^z_j - z_k)
    and the gradient of that by z_k is (sum_j q_j) softmax_k - q_k. To base 2, as exp2 takes half
    the time of exp on a CPU.
    """
    weight = valid.to(slab.dtype)
    if weights is not None:
        weight *= weights.take(own)
    target = mass = weight * (1 - label_smoothing)
    slab -= slab.amax(0)
    loss = -(target * slab.gather(0, own[None])[0]).sum()
    if label_smoothing:
        smooth = slab.new_ones(len(slab)) if weights is None else weights
        smooth = smooth * (label_smoothing / len(slab))
        mass = target + smooth.sum() * valid
        loss -= (torch.tensordot(smooth, slab, 1) * valid).sum()
    total = slab.exp2_().sum(0)
    loss += (mass * total.log2()).sum()
    if wanted:
        slab *= mass / total
        slab.scatter_add_(0, own[None], -target[None])
        if label_smoothing:
            slab -= smooth[:, None, None] * valid
    return torch.stack([loss * log(2), weight.sum()])


def valid_classes(labels: torch.Tensor, ignore_index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which pixels count, and every pixel's class, 0 where it does not count."""
    valid = labels != ignore_index
    return valid, labels.where(valid, 0).long()


def check_labels(labels: torch.Tensor, classes: int, ignore_index: int) -> None:
    """IndexError for a label that is neither a class nor ignore_index."""
    low, high = labels.masked_fill(labels == ignore_index, 0).aminmax()
    if low < 0 or high >= classes:
        raise IndexError(f"labels {low} to {high} are out of range for {classes} classes")


def in_float32(logits: torch.Tensor) -> torch.Tensor:
    """float32 for half precision; float64 stays."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
