"""The training criterion."""

import torch
import torch.distributed as dist
from torch import nn

from model.ops.upsample_cross_entropy import upsample_cross_entropy


class SegmentationLoss(nn.Module):
    """Mean cross entropy over all labelled pixels of all processes, plus the auxiliary head's."""

    def __init__(
        self, *, class_weights: torch.Tensor | None = None, aux_weight: float = 0.4
    ) -> None:
        """class_weights: (K,) float32; pixel weights of a weighted mean."""
        super().__init__()
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.aux_weight = aux_weight

    def forward(
        self, outputs: dict[str, torch.Tensor], labels: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """{"out"[, "aux"]: (N,K,h,w)}, (N,H,W) uint8 -> {"loss", "out"[, "aux"]} scalars.

        The mean is over the labelled pixels of the *global* batch, so that 2 processes with 4
        images each train like one with 8. Gradients are averaged over processes (DDP); the factor
        `world` undoes that.
        """
        world = dist.get_world_size() if dist.is_initialized() else 1
        means = {}
        for name, logits in outputs.items():
            loss_sum, weight_sum = upsample_cross_entropy(
                logits, labels, class_weights=self.class_weights
            )
            if world > 1:
                dist.all_reduce(weight_sum)
            # The smallest positive divisor keeps 0 / 0, a batch without a labelled pixel, at 0.
            means[name] = world * loss_sum / weight_sum.clamp_min(torch.finfo(torch.float32).tiny)
        return {"loss": means["out"] + self.aux_weight * means.get("aux", 0.0), **means}
