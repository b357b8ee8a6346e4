"""Cross entropy of logits at the model's stride against labels at full size."""

import torch
from torch.nn import functional as F


def upsample_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    class_weights: torch.Tensor | None = None,
    ignore_index: int = 255,
    align_corners: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(N,K,h,w) logits, (N,H,W) uint8 labels -> (loss_sum, weight_sum), two scalars.

    The bilinearly upsampled logits' cross entropy is summed over the labelled pixels, each times
    its class's weight; weight_sum is the sum of those weights (their number without weights).
    Sums, not a mean, so that several micro-batches or processes add up to one exact mean. With no
    labelled pixel both are 0 and the gradient is finite.
    """
    size = labels.shape[-2:]
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    full = F.interpolate(wide, size, mode="bilinear", align_corners=align_corners)
    target = labels.long()
    loss_sum = F.cross_entropy(
        full, target, weight=class_weights, ignore_index=ignore_index, reduction="sum"
    )
    if class_weights is None:
        return loss_sum, (target != ignore_index).sum().to(full.dtype)
    counts = torch.bincount(target.flatten(), minlength=ignore_index + 1)
    return loss_sum, (counts[: len(class_weights)] * class_weights).sum()
