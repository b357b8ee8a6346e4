"""Logits at the model's stride -> the probability of the most likely class at full size."""

import torch

from model.ops.bilinear import exact_products, in_float32, make_pieces, widen


def upsample_confidence(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(N,K,h,w) logits -> (N,H,W) float32: bilinear to `size` = (H,W), softmax, maximum.

    Computes some rows at a time; full-size logits never exist.
    """
    logits = in_float32(logits)
    if logits.shape[-2:] == size:
        return logits.softmax(1).amax(1)
    rows, columns = make_pieces(logits, size, False)
    with exact_products():
        wide = widen(logits, columns)
        slabs = (matrix @ wide[:, :, sources] for _, sources, matrix in rows)
        return torch.cat([slab.softmax(1).amax(1) for slab in slabs], 1)
