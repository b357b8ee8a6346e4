"""--find_batch_size: the largest micro-batch that fits into memory."""

import copy
import gc
import sys
from dataclasses import replace

import torch
from torch import nn

from model.normalize import FromPixels
from utils.base.errors import UserError, out_of_memory
from utils.data.batches import Batch, empty_targets
from utils.training.config import Config
from utils.training.distributed import World, gather_over_ranks
from utils.training.optim import build_optimizer
from utils.training.step import add_gradients


def find_batch_size(
    config: Config, model: nn.Module, criterion: nn.Module, amp: torch.dtype | None, world: World
) -> Config:
    """`config` with the largest batch_size that fits in every process; accumulate keeps the number
    of images of a step. UserError if not even the smallest one fits."""
    images = config.batch_size * config.accumulate
    least = getattr(model, "smallest_batch", 1) if config.norm == "bn" else 1
    sizes = [size for size in range(images, 0, -1) if images % size == 0 and size >= least]
    for size in sizes:
        fitting = replace(config, batch_size=size, accumulate=images // size)
        fit = fits(fitting, model, criterion, amp, world)
        gc.collect()  # tensors of the trial, which a caught error and its traceback also held
        if world.on_gpu:
            torch.cuda.empty_cache()
        if all(gather_over_ranks(fit, world)):
            if world.is_main:
                print(f"--batch_size {size} --accumulate {images // size}", file=sys.stderr)
            return fitting
    what = f"not even {sizes[-1]} crops of {config.largest_crop()} fit into memory"
    raise UserError(f"--find_batch_size true: {what}. Give a smaller --crop")


def fits(
    config: Config, model: nn.Module, criterion: nn.Module, amp: torch.dtype | None, world: World
) -> bool:
    """Whether a step of a copy of the model with one micro-batch fits into memory."""
    shape = (config.batch_size, *config.largest_crop())
    try:
        trial = copy.deepcopy(model)
        optimizer = build_optimizer(trial, config.optimizer, base_lr=0.0, weight_decay=0.0)
        images = torch.zeros(*shape, 3, dtype=torch.uint8, device=world.device)
        targets = empty_targets(shape, criterion.planes, device=world.device)
        batch = Batch(images, {plane: x.zero_() for plane, x in targets.items()}, [])
        how = {"pixels": images.numel() // 3, "amp": amp, "scaler": None}
        add_gradients(FromPixels(trial), criterion, batch, **how)
        optimizer.step()
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return False
    return True
