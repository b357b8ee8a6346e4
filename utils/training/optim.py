"""Parameter groups, the learning rate as a pure function of the step, and averaged weights."""

import copy
from functools import partial

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

OPTIMIZERS = {"sgd": partial(torch.optim.SGD, momentum=0.9), "adamw": torch.optim.AdamW}


def build_optimizer(
    model: nn.Module,
    kind: str,
    *,
    base_lr: float,
    weight_decay: float,
    head_lr_factor: float = 1.0,
    decay_norm: bool = True,
) -> torch.optim.Optimizer:
    """OPTIMIZERS[kind] over the trainable parameters.

    head_lr_factor: multiplies base_lr for parameters outside model.backbone, as in DeepLabV2.
    decay_norm: apply weight decay to biases and normalisation weights too.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = base_lr if name.startswith("backbone.") else base_lr * head_lr_factor
            decay = weight_decay if decay_norm or parameter.ndim > 1 else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
    lists = [{"params": x, "lr": lr, "weight_decay": decay} for (lr, decay), x in groups.items()]
    optimizer = OPTIMIZERS[kind](lists, lr=base_lr, fused=True)
    begin_momentum(optimizer)
    return optimizer


def begin_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Set missing momentum of SGD to zero; it is missing if fp16 overflows in the first step."""
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        if isinstance(optimizer, torch.optim.SGD) and not optimizer.state[parameter]:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def lr_factor(step: int, *, total: int, warmup: int, power: float, floor: float) -> float:
    """Factor on the base learning rate at `step` in 0..total-1.

    Polynomial decay (DeepLabV2, arXiv 1606.00915, section 4.1.1) from 1 to `floor`, times a linear
    rise over the first `warmup` steps.
    """
    decayed = floor + (1 - floor) * max(0.0, 1 - step / total) ** power
    return decayed * min(1.0, (step + 1) / warmup) if warmup else decayed


def poly_schedule(optimizer: torch.optim.Optimizer, *, start: int, **curve: float) -> LambdaLR:
    """The schedule in its state after `start` steps. curve: total, warmup, power and floor of
    lr_factor."""
    return LambdaLR(optimizer, partial(lr_factor, **curve), last_epoch=start - 1)


class AveragedWeights:
    """An exponential moving average of a model's weights and buffers, as a second model."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Average `model`, whose tensors must stay the same objects."""
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        both = (network.state_dict().values() for network in (self.model, model))
        pairs = [*zip(*both, strict=True)]
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        counters = [pair for pair in pairs if not pair[0].is_floating_point()]
        self.floats, self.counters = ([*zip(*part, strict=True)] for part in (floats, counters))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update after optimizer step `step` (1, 2, ...); copies counters (num_batches_tracked).

        Early steps weigh more, because the average would otherwise keep the initial weights.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(*self.floats, 1 - decay)
        if self.counters:
            torch._foreach_copy_(*self.counters)
