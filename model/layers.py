"""Building blocks shared by the architectures."""

from itertools import pairwise
from math import gcd
from typing import Literal

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Norm = Literal["bn", "gn", "gn_ws"]
Separable = bool | Literal["bare"]
NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
GROUPS = 32  # of GroupNorm (Wu and He, arXiv 1803.08494, section 4.1)


class WSConv2d(nn.Conv2d):
    """Convolution with Weight Standardization (Qiao et al., arXiv 1903.10520, equation 5).

    Standardizes the filter of each output channel to mean 0 and deviation 1. As in the authors'
    code, the deviation is unbiased, and 1e-5 is added to the deviation, not to the variance.
    """

    def standardized(self) -> torch.Tensor:
        """Standardized weights, in the shape of self.weight."""
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True)
        scale = 1 / (variance.sqrt() + 1e-5)
        return torch.addcmul(-mean * scale, self.weight, scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N,C,H,W) -> (N,C',H',W')."""
        return self._conv_forward(x, self.standardized(), self.bias)


def set_norm(network: nn.Module, norm: Norm) -> None:
    """Replace BatchNorm by GroupNorm, in place; "bn" changes nothing.

    "gn_ws" also turns convolutions without bias into WSConv2d. The state_dict loses the statistics.
    """
    if norm == "bn":
        return
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                groups = gcd(GROUPS, child.num_features)  # 16 for DeepLabV3+'s 48 channels
                setattr(module, name, nn.GroupNorm(groups, child.num_features))
            elif norm == "gn_ws" and type(child) is nn.Conv2d and child.bias is None:
                child.__class__ = WSConv2d  # same parameters, another forward


def conv_norm_relu(
    inputs: int,
    outputs: int,
    kernel: int = 1,
    dilation: int = 1,
    *,
    separable: Separable = False,
) -> list[nn.Module]:
    """Size-preserving convolution without bias, BatchNorm, ReLU. separable: one such convolution of
    each channel alone, then a 1x1 of all (arXiv 1802.02611, section 3.1); "bare": without norm and
    ReLU between the two, as in SMP."""
    padding, groups = dilation * (kernel // 2), inputs if separable else 1
    width = inputs if separable else outputs
    conv = nn.Conv2d(inputs, width, kernel, 1, padding, dilation, groups, bias=False)
    if separable == "bare":
        return [conv, *conv_norm_relu(inputs, outputs)]
    block = [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return [*block, *conv_norm_relu(inputs, outputs)] if separable else block


def fcn_head(inputs: int, num_classes: int) -> nn.Sequential:
    """torchvision's FCN head: 3x3 to a quarter of the channels -> dropout 0.1 -> classes."""
    width = inputs // 4
    head = conv_norm_relu(inputs, width, 3)
    return nn.Sequential(*head, nn.Dropout(0.1), nn.Conv2d(width, num_classes, 1))


def set_momentum(model: nn.Module, backbone: float, head: float) -> None:
    """Set BatchNorm's momentum: the weight of a batch in the running statistics."""
    for name, module in model.named_modules():
        if isinstance(module, NORMS):
            module.momentum = backbone if name.startswith("backbone.") else head


def freeze_norms(model: nn.Module) -> None:
    """Freeze BatchNorm's statistics and weights; a later model.train() unfreezes the statistics."""
    for module in model.modules():
        if isinstance(module, NORMS):
            module.eval().requires_grad_(False)


def set_frozen(module: nn.Module, frozen: bool) -> None:
    """Freeze or train all weights and BatchNorm statistics of a module."""
    module.requires_grad_(not frozen).train(not frozen)


def zero_last_norms(model: nn.Module) -> None:
    """Weight 0 for the last norm of each residual block, so that blocks begin as the identity
    (Goyal et al., arXiv 1706.02677, section 5.1). ValueError if there is no such block."""
    blocks = [module for module in model.modules() if hasattr(module, "downsample")]
    if not blocks:
        raise ValueError("for networks with a ResNet only")
    for module in blocks:
        nn.init.zeros_(getattr(module, "bn3", module.bn2).weight)


def fold(network: nn.Module) -> None:
    """For inference, in place: fold BatchNorm into convolutions, standardize weights once.

    Assumes that a module registers each BatchNorm right after its Conv2d, as torchvision's do.
    """
    for module in network.modules():
        if isinstance(module, WSConv2d):
            with torch.no_grad():
                module.weight.copy_(module.standardized())
            module.__class__ = nn.Conv2d  # reverts set_norm
        for (conv_name, conv), (norm_name, norm) in pairwise([*module.named_children()]):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, NORMS):
                setattr(module, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(module, norm_name, nn.Identity())
