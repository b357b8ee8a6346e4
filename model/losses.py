"""The training criterion."""

import torch
from torch import nn

from model.ops.upsample_cross_entropy import hard_pixels, upsample_cross_entropy


class SegmentationLoss(nn.Module):
    """Cross entropy of the upsampled logits, plus the auxiliary head's."""

    def __init__(
        self,
        *,
        class_weights: torch.Tensor | None = None,
        aux_weight: float = 0.4,
        label_smoothing: float = 0.0,
        hard_threshold: float | None = None,
        hard_min_kept: int = 0,
    ) -> None:
        """class_weights: (K,) float32; pixel weights of a weighted mean.

        With hard_threshold only the pixels count whose class has at most this probability, and the
        hard_min_kept worst of the batch in any case (see hard_pixels).
        """
        super().__init__()
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.aux_weight = aux_weight
        self.label_smoothing = label_smoothing
        self.hard_threshold = hard_threshold
        self.hard_min_kept = hard_min_kept

    def forward(
        self, outputs: dict[str, torch.Tensor], labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """{"out"[, "aux"]: (N,K,h,w)}, (N,H,W) uint8 -> (loss_sum, weight_sum), this process's.

        Sums: whoever knows all micro-batches and processes divides (train.training_step). Both
        heads learn from the pixels that are hard for the main one.
        """
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
            loss_sum = loss_sum + self.aux_weight * sums["aux"][0]
        return loss_sum, weight_sum
