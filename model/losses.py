"""Training loss."""

from collections.abc import Mapping

import torch
from torch import nn

from model.ops.upsample_cross_entropy import hard_pixels, upsample_cross_entropy

AUX_WEIGHT = 0.4  # weight of the auxiliary head's loss (PSPNet, arXiv 1612.01105, section 3.3)


class SegmentationLoss(nn.Module):
    """Cross entropy of the upsampled logits, plus that of the auxiliary head."""

    def __init__(
        self,
        *,
        class_weights: torch.Tensor | None = None,
        label_smoothing: float = 0.0,
        hard_threshold: float | None = None,
        hard_min_kept: int = 0,
    ) -> None:
        """class_weights: (K,) float32, weights of the pixels in a weighted mean.

        hard_threshold: count only pixels whose true class has at most this probability, but at
        least the hard_min_kept pixels of the batch with the highest loss (see hard_pixels).
        """
        super().__init__()
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.label_smoothing = label_smoothing
        self.hard_threshold = hard_threshold
        self.hard_min_kept = hard_min_kept

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
        sums = {
            name: upsample_cross_entropy(
                logits,
                labels,
                class_weights=self.class_weights,
                label_smoothing=self.label_smoothing,
            )
            for name, logits in outputs.items()
        }
        loss_sum, weight_sum = sums["out"]
        if "aux" in sums:
            loss_sum = loss_sum + AUX_WEIGHT * sums["aux"][0]
        return loss_sum, weight_sum
