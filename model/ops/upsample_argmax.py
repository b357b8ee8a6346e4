"""Logits at the model's stride -> the most likely class at full size."""

import torch
from torch.nn import functional as F


def upsample_argmax(
    logits: torch.Tensor, size: tuple[int, int], *, align_corners: bool = False
) -> torch.Tensor:
    """(N,K,h,w) logits -> (N,H,W) uint8 classes: bilinear to `size` = (H,W), then argmax.

    Compared in float32 at least: bfloat16 makes ties between neighbouring classes.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    full = F.interpolate(wide, size, mode="bilinear", align_corners=align_corners)
    return full.argmax(1).to(torch.uint8)
