"""Training loss."""

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional as F

from model.ops.upsample_cross_entropy import (
    hard_pixels,
    hardest_pixels,
    upsample_cross_entropy,
    valid_classes,
)

AUX_WEIGHT = 0.4  # weight of the auxiliary head's loss (PSPNet, arXiv 1612.01105, section 3.3)


class SegmentationLoss(nn.Module):
    """Cross entropy of the upsampled logits, plus that of the auxiliary head, plus dice_loss and
    lovasz_softmax of the main head."""

    planes = ("label",)  # targets that it needs
    network_targets = False  # whether the network needs them too

    def __init__(
        self,
        *,
        class_weights: torch.Tensor | None = None,
        label_smoothing: float = 0.0,
        hard_threshold: float | None = None,
        hard_min_kept: int = 0,
        focal: float = 0.0,
        dice: float = 0.0,
        lovasz: float = 0.0,
    ) -> None:
        """class_weights: (K,) float32, weights of the pixels in a weighted mean.

        focal: exponent of focal_cross_entropy, 0 for cross entropy. dice, lovasz: weights of these
        losses beside the mean cross entropy.

        hard_threshold: count only pixels whose true class has at most this probability, but at
        least the hard_min_kept pixels of the batch with the highest loss (see hard_pixels).
        """
        super().__init__()
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.label_smoothing = label_smoothing
        self.hard_threshold = hard_threshold
        self.hard_min_kept = hard_min_kept
        self.focal, self.dice, self.lovasz = focal, dice, lovasz
        self.register_buffer("final_weights", class_weights, persistent=False)
        if class_weights is not None:
            self.class_weights = class_weights.clone()

    def weigh(self, weighing: bool) -> None:
        """Weigh pixels by class from now on, or all pixels alike. In place, for CUDA graphs."""
        if self.class_weights is not None and weighing:
            self.class_weights.copy_(self.final_weights)
        elif self.class_weights is not None:
            self.class_weights.fill_(1)

    def forward(
        self, outputs: dict[str, torch.Tensor], targets: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """{"out"[, "aux"]: (N,K,h,w)}, {"label": (N,H,W) uint8} -> (loss_sum, weight_sum).

        Sums of this process; training_step (utils/training/step.py) divides them, because only it
        knows all micro-batches and processes. Both heads use the main head's hard pixels.
        """
        labels = targets["label"]
        if self.hard_threshold is not None:
            labels = hard_pixels(
                outputs["out"].detach(),
                labels,
                threshold=self.hard_threshold,
                min_kept=self.hard_min_kept,
            )
        sums = {name: self.cross_entropy(logits, labels) for name, logits in outputs.items()}
        loss_sum, weight_sum = sums["out"]
        if "aux" in sums:
            loss_sum = loss_sum + AUX_WEIGHT * sums["aux"][0]
        # Losses of a whole micro-batch, times weight_sum: training_step divides by its sum.
        for weight, loss in ((self.dice, dice_loss), (self.lovasz, lovasz_softmax)):
            if weight:
                loss_sum = loss_sum + weight * weight_sum * loss(outputs["out"], labels)
        return loss_sum, weight_sum

    def cross_entropy(
        self, logits: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(N,K,h,w) logits, (N,H,W) labels -> (loss_sum, weight_sum)."""
        if self.focal:
            how = {"class_weights": self.class_weights, "gamma": self.focal}
            return focal_cross_entropy(logits, labels, **how)
        how = {"class_weights": self.class_weights, "label_smoothing": self.label_smoothing}
        return upsample_cross_entropy(logits, labels, **how)


def focal_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    gamma: float,
    class_weights: torch.Tensor | None = None,
    ignore_index: int = 255,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(N,K,h,w) logits, (N,H,W) labels -> (loss_sum, weight_sum) of the upsampled logits.

    Focal loss (Lin et al., arXiv 1708.02002, equation 5): cross entropy times (1 - p)^gamma, where
    p is the probability of the pixel's class. Holds tensors of full size, unlike cross entropy.
    """
    full = F.interpolate(logits.float(), labels.shape[-2:], mode="bilinear")
    valid, own = valid_classes(labels, ignore_index)
    losses = F.cross_entropy(full, own, reduction="none")
    weight = valid.float() if class_weights is None else valid * class_weights[own]
    doubt = (-torch.expm1(-losses)).clamp_min(1e-8)  # 1 - p; at 0 the power has no gradient
    return (doubt**gamma * losses * weight).sum(), weight.sum()


def dice_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(N,K,h,w) logits, (N,H,W) labels -> 1 - mean Dice coefficient of the classes in the labels.

    Soft Dice (Milletari et al., arXiv 1606.04797, section 3, without the squares) over the whole
    batch, at the stride of the logits: the truth of a cell is the share of each class in it.
    """
    masks = ((labels == number).float() for number in range(logits.shape[1]))
    truth = torch.stack([F.adaptive_avg_pool2d(x, logits.shape[-2:]) for x in masks], dim=1)
    known = truth.sum(1, keepdim=True)  # less than 1 where pixels are ignored
    predicted = logits.float().softmax(1) * known
    both, either = (x.sum((0, 2, 3)) for x in (predicted * truth, predicted + truth))
    present = truth.sum((0, 2, 3)) > 0
    return ((1 - 2 * both / either.clamp_min(1e-6)) * present).sum() / present.sum().clamp_min(1)


def lovasz_softmax(
    logits: torch.Tensor, labels: torch.Tensor, *, ignore_index: int = 255
) -> torch.Tensor:
    """(N,K,h,w) logits, (N,H,W) labels -> mean Lovasz loss of the classes in the labels.

    Berman et al., arXiv 1705.08790, equations 8 and 9 and algorithm 1, over the whole batch, at the
    stride of the logits, with the label of the pixel in the middle of each cell.
    """
    small = F.interpolate(labels[:, None].float(), logits.shape[-2:], mode="nearest-exact")
    small = small.flatten()
    probabilities = logits.float().softmax(1).movedim(1, 0).flatten(1)  # (K,P)
    truth = (small == torch.arange(len(probabilities), device=small.device)[:, None]).float()
    errors = (truth - probabilities).abs() * (small != ignore_index)  # ignored pixels come last
    errors, order = errors.sort(1, descending=True)
    found = truth.gather(1, order)
    total = found.sum(1, keepdim=True)
    jaccard = 1 - (total - found.cumsum(1)) / (total + (1 - found).cumsum(1)).clamp_min(1)
    losses = (errors * jaccard.diff(dim=1, prepend=jaccard.new_zeros(len(jaccard), 1))).sum(1)
    present = total[:, 0] > 0
    return (losses * present).sum() / present.sum().clamp_min(1)


class PanopticDeepLabLoss(nn.Module):
    """Losses of Panoptic-DeepLab (arXiv 1911.10194, section 3.2): semantic cross entropy of the
    hardest pixels, 200 times the squared error of the heat, and the L1 error of the offsets.

    Each is a mean over its pixels of one image, then over the images.
    """

    planes = ("label", "region", "heat", "offset")
    network_targets = False
    SMALL = 3.0  # weight of the pixels of small instances in the cross entropy
    HEAT = 200.0

    def __init__(
        self,
        *,
        class_weights: torch.Tensor | None = None,
        hardest: float = 0.2,
        offset_weight: float = 0.01,
    ) -> None:
        """class_weights: (K,) float32; scaled here to a mean of 1. hardest: share of the pixels of
        an image that the cross entropy counts, those with the highest loss."""
        super().__init__()
        self.hardest, self.offset_weight = hardest, offset_weight
        scaled = None if class_weights is None else class_weights / class_weights.mean()
        self.register_buffer("class_weights", scaled, persistent=False)
        self.register_buffer("final_weights", class_weights, persistent=False)

    def forward(
        self, outputs: dict[str, torch.Tensor], targets: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """{"out", "center", "offset"}, {"label", "region", "heat", "offset"} of N crops ->
        (loss_sum, weight_sum), the number of pixels. region: 0 for pixels without heat, 1 for
        stuff, 2 for things, 3 for small things (utils/data/instance_targets.py)."""
        labels, region = targets["label"], targets["region"]
        count, pixels = len(labels), labels[0].numel()
        logits = outputs["out"]
        weights = 1 + (self.SMALL - 1) * (region == 3)
        hard = labels
        if self.hardest < 1:
            hard = hardest_pixels(logits.detach(), labels, weights, share=self.hardest)
        how = {"class_weights": self.class_weights, "pixel_weights": weights}
        number = max(1, int(self.hardest * pixels))
        semantic = upsample_cross_entropy(logits, hard, **how)[0] / number

        size = labels.shape[-2:]
        heat, offset = (
            F.interpolate(outputs[name].float(), size, mode="bilinear")
            for name in ("center", "offset")
        )
        heat_error = (heat[:, 0] - targets["heat"]).square()
        scales = (full / small for full, small in zip(size, logits.shape[-2:], strict=True))
        sides = zip(offset.unbind(1), scales, targets["offset"].unbind(1), strict=True)
        offset_error = sum((found * scale - true).abs() for found, scale, true in sides) / 2
        losses = (
            (self.HEAT, heat_error, region > 0),
            (self.offset_weight, offset_error, region > 1),
        )
        instance = sum(
            factor * ((values * mask).sum((1, 2)) / mask.sum((1, 2)).clamp_min(1)).sum()
            for factor, values, mask in losses
        )
        weight_sum = torch.full_like(instance, count * pixels)
        return pixels * (semantic + instance), weight_sum


class UPSNetLoss(nn.Module):
    """Sum of UPSNet's losses (arXiv 1901.03784, section 3.2), each a mean over a micro-batch."""

    planes = ("label", "thing")
    network_targets = True
    ROI = 0.2  # weight of the RoI loss beside the semantic one

    def __init__(
        self,
        *,
        class_weights: torch.Tensor | None = None,
        semantic_weight: float = 1.0,
        panoptic_weight: float = 0.5,
    ) -> None:
        """class_weights: (K,) float32, of the semantic cross entropy."""
        super().__init__()
        self.register_buffer("final_weights", class_weights, persistent=False)
        self.semantic_weight, self.panoptic_weight = semantic_weight, panoptic_weight

    def forward(
        self, outputs: dict[str, torch.Tensor], targets: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Outputs of UPSNet in training mode, {"label": (N,H,W)} -> (loss_sum, weight_sum),
        the number of pixels."""
        labels = targets["label"]
        how = {"class_weights": self.final_weights}
        loss_sum, weight_sum = upsample_cross_entropy(outputs["out"], labels, **how)
        semantic = loss_sum / weight_sum.clamp_min(torch.finfo(weight_sum.dtype).tiny)
        if "roi" in outputs:
            semantic = semantic + self.ROI * outputs["roi"]
        loss = outputs["instances"] + self.semantic_weight * semantic
        loss = loss + self.panoptic_weight * outputs["panoptic"]
        return labels.numel() * loss, torch.full_like(loss, labels.numel())
