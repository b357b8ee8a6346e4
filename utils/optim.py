"""The learning rate as a pure function of the step."""

from functools import partial

import torch
from torch.optim.lr_scheduler import LambdaLR


def lr_factor(step: int, *, total: int, warmup: int, power: float, floor: float) -> float:
    """Share of the base learning rate at `step` of 0..total-1.

    Polynomial decay (DeepLabV2, arXiv 1606.00915, section 4.1.1) from 1 to `floor`, times a linear
    rise over the first `warmup` steps.
    """
    decayed = floor + (1 - floor) * max(0.0, 1 - step / total) ** power
    return decayed * min(1.0, (step + 1) / warmup) if warmup else decayed


def poly_schedule(
    optimizer: torch.optim.Optimizer,
    *,
    start: int,
    total: int,
    warmup: int,
    power: float,
    floor: float,
) -> LambdaLR:
    """The schedule as it stands before the first step (start 0), or after `start` steps."""
    factor = partial(lr_factor, total=total, warmup=warmup, power=power, floor=floor)
    return LambdaLR(optimizer, factor, last_epoch=start - 1)
