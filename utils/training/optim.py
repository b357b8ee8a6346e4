"""Parameter groups, the learning rate as a pure function of the step, and averaged weights."""

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

RISE = 0.3  # share of a one-cycle training in which the learning rate rises, as in OneCycleLR


class Muon(torch.optim.AdamW):
    """Muon for parameter groups with "muon": True, AdamW for the others.

    Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) makes the update of a matrix
    orthogonal. A convolution (O,I,h,w) counts as a matrix (O,I*h*w). Updates are scaled by
    0.2 sqrt(max(rows, columns)) (Liu et al., arXiv 2502.16982, equation 4), so that learning rates
    of AdamW fit. torch.optim.Muon takes matrices only, and has no AdamW for the rest.
    """

    MOMENTUM = 0.95

    def __init__(self, groups: list[dict[str, Any]], lr: float, fused: bool) -> None:
        super().__init__(groups, lr=lr, fused=fused)
        self._step_supports_amp_scaling = False  # else GradScaler leaves overflows to the kernel

    @torch.no_grad()
    def step(self) -> None:
        every = self.param_groups
        self.param_groups = [group for group in every if not group["muon"]]
        super().step()
        self.param_groups = every
        for group in every:
            for parameter in group["params"] if group["muon"] else ():
                if parameter.grad is not None:
                    self.update_matrix(parameter, **group)

    def update_matrix(
        self, parameter: nn.Parameter, *, lr: float, weight_decay: float, **_: Any
    ) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
            state["step"] = torch.zeros(())  # unused; AdamW expects one when a state is loaded
        mean = state["momentum_buffer"].lerp_(parameter.grad, 1 - self.MOMENTUM)
        matrix = parameter.grad.lerp(mean, self.MOMENTUM).flatten(1)  # Nesterov's momentum
        scale = 0.2 * max(matrix.shape) ** 0.5
        update = orthogonal(matrix).reshape(parameter.shape)
        parameter.mul_(1 - lr * weight_decay).add_(update, alpha=-lr * scale)


def orthogonal(matrix: torch.Tensor, *, steps: int = 5) -> torch.Tensor:
    """(M,N) -> (M,N) of the same singular vectors; singular values become 0.7 to 1.2.

    Five Newton-Schulz steps with Jordan's coefficients. They run on the smaller of the products
    X X' and X' X: less than half of the work for a matrix of 512x4608.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonal(matrix.T, steps=steps).T
    matrix = matrix / (matrix.norm() + 1e-7)
    gram = matrix @ matrix.T
    one = product = torch.eye(len(gram), device=gram.device)
    for _ in range(steps):
        factor = 3.4445 * one - 4.7750 * gram + 2.0315 * gram @ gram
        gram = factor @ gram @ factor
        product = factor @ product
    return product @ matrix


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, momentum=0.9),
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "muon": Muon,
}


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
    decay_norm: apply weight decay to biases and normalisation weights too. "muon" updates the
    convolutions without a bias by Muon, so not the last ones, which give the class scores.
    """
    convs = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    hidden = {conv.weight for conv in convs if conv.bias is None and kind == "muon"}
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = base_lr if name.startswith("backbone.") else base_lr * head_lr_factor
            decay = weight_decay if decay_norm or parameter.ndim > 1 else 0.0
            groups.setdefault((rate, decay, parameter in hidden), []).append(parameter)
    lists = [
        {"params": x, "lr": lr, "weight_decay": decay} | ({"muon": muon} if kind == "muon" else {})
        for (lr, decay, muon), x in groups.items()
    ]
    optimizer = OPTIMIZERS[kind](lists, lr=base_lr, fused=True)
    begin_momentum(optimizer)
    return optimizer


def begin_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Set missing momentum of SGD to zero; it is missing if fp16 overflows in the first step."""
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        if isinstance(optimizer, torch.optim.SGD) and not optimizer.state[parameter]:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def lr_factor(
    step: int,
    *,
    total: int,
    warmup: int,
    power: float,
    floor: float,
    schedule: str = "poly",
    milestones: Sequence[float] = (1 / 3, 2 / 3),
) -> float:
    """Factor on the base learning rate at `step` in 0..total-1, from 1 to `floor`, times a linear
    rise over the first `warmup` steps.

    poly: polynomial decay (DeepLabV2, arXiv 1606.00915, section 4.1.1); linear: poly of power 1;
    cosine: half a period (SGDR, arXiv 1608.03983, equation 5); step: a tenth after each of the
    `milestones`, shares of the training; exponential: the same factor at every step; onecycle: from
    1/25 up to 1, then down, both along a cosine (arXiv 1708.07120, as PyTorch's OneCycleLR).
    """
    done = min(1.0, step / total)
    if schedule == "exponential":
        decayed = floor**done
    elif schedule == "onecycle" and done < RISE:
        decayed = 1 / 25 + (1 - 1 / 25) * half_cosine(1 - done / RISE)
    else:
        shape = {
            "poly": (1 - done) ** power,
            "linear": 1 - done,
            "cosine": half_cosine(done),
            "step": 0.1 ** sum(done >= share for share in (*milestones, 1)),
            "onecycle": half_cosine((done - RISE) / (1 - RISE)),
        }[schedule]
        decayed = floor + (1 - floor) * shape
    return decayed * min(1.0, (step + 1) / warmup) if warmup else decayed


def half_cosine(done: float) -> float:
    """From 1 at 0 to 0 at 1."""
    return (1 + math.cos(math.pi * done)) / 2


def lr_schedule(optimizer: torch.optim.Optimizer, *, start: int, **curve: Any) -> LambdaLR:
    """The schedule in its state after `start` steps. curve: options of lr_factor."""
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
