"""One update of the weights."""

from contextlib import nullcontext
from functools import partial

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from utils.data.batches import Batch
from utils.training.distributed import autocast
from utils.training.replay import Replay


def training_step(
    model: nn.Module,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    micro_batches: list[Batch],
    *,
    amp: torch.dtype | None = None,
    scaler: torch.amp.GradScaler | None = None,
    clip: float | None = None,
    replay: Replay | None = None,
) -> torch.Tensor:
    """Update the weights from micro-batches; returns the mean loss as a scalar on the device.

    The mean is over the labelled pixels of all micro-batches and processes: gradients of loss sums
    are added first, then divided by the weight of all pixels. So 1 x 8, 2 x 4 and two processes
    with 4 crops are the same training, except that each micro-batch has its own BatchNorm
    statistics and dropout.
    model: FromPixels around a network, or DDP around FromPixels. replay: for a training of one
    process, the same object at every step.
    """
    optimizer.zero_grad(set_to_none=replay is None)
    # Division by the number of pixels keeps the sums in the range of fp16.
    pixels = sum(batch.images.numel() // 3 for batch in micro_batches)
    add = partial(add_gradients, model, criterion, pixels=pixels, amp=amp, scaler=scaler)
    sums = []
    for number, batch in enumerate(micro_batches):
        # Gradients are exchanged once, after the last micro-batch.
        several = isinstance(model, DistributedDataParallel) and number < len(micro_batches) - 1
        with model.no_sync() if several else nullcontext():
            sums.append(replay(add, batch) if replay else add(batch))
    # The divisor is known only now: the labelled pixels of all micro-batches of all processes.
    total = torch.stack(sums).sum(0)
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    if world_size > 1:
        dist.all_reduce(total)
    loss_sum, weight_sum = total
    share = torch.where(weight_sum > 0, 1 / weight_sum, 0)  # 0 for a batch without labels
    if scaler:
        scaler.unscale_(optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = [p.grad for p in parameters if p.grad is not None]
    torch._foreach_mul_(gradients, world_size * pixels * share)
    if clip is not None:
        torch.nn.utils.clip_grad_norm_(parameters, clip)
    if scaler:
        scaler.step(optimizer)
        scaler.update()
    else:
        optimizer.step()
    return loss_sum * share


def add_gradients(
    model: nn.Module,
    criterion: nn.Module,
    batch: Batch,
    *,
    pixels: int,
    amp: torch.dtype | None,
    scaler: torch.amp.GradScaler | None,
) -> torch.Tensor:
    """Add the gradients of a micro-batch's loss_sum / pixels; returns loss_sum and weight_sum."""
    with autocast(batch.images.device, amp):
        known = [batch.targets] if criterion.network_targets else []
        outputs = model(batch.images, batch.colors, *known)
    loss_sum, weight_sum = criterion(outputs, batch.targets)
    part = loss_sum / pixels
    (scaler.scale(part) if scaler else part).backward()
    return torch.stack([loss_sum.detach(), weight_sum])
