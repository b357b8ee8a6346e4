"""Building blocks that more than one architecture uses."""

from itertools import pairwise
from typing import Literal

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Norm = Literal["bn", "gn", "gn_ws"]
NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
GROUPS = 32  # of GroupNorm (Wu and He, arXiv 1803.08494, section 4.1)


class WSConv2d(nn.Conv2d):
    """Convolution with Weight Standardization (Qiao et al., arXiv 1903.10520, equation 5).

    Each output channel's filter with mean 0 and deviation 1; the deviation is the unbiased one, and
    1e-5 is added to it, not to the variance, as the authors' code has it.
    """

    def standardized(self) -> torch.Tensor:
        """The weights that convolve, shaped as self.weight."""
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True)
        scale = 1 / (variance.sqrt() + 1e-5)
        return torch.addcmul(-mean * scale, self.weight, scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N,C,H,W) -> (N,C',H',W')."""
        return self._conv_forward(x, self.standardized(), self.bias)


def set_norm(network: nn.Module, norm: Norm) -> None:
    """In place: GroupNorm for every BatchNorm, Weight Standardization in convolutions without bias.

    "bn" leaves all as it is, "gn" the convolutions. The state_dict keeps its keys but statistics.
    """
    if norm == "bn":
        return
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.GroupNorm(GROUPS, child.num_features))
            elif norm == "gn_ws" and type(child) is nn.Conv2d and child.bias is None:
                child.__class__ = WSConv2d  # same parameters, another forward


def conv_norm_relu(
    inputs: int, outputs: int, kernel: int = 1, dilation: int = 1
) -> list[nn.Module]:
    """Convolution without bias that keeps the size, BatchNorm, ReLU."""
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def set_momentum(model: nn.Module, backbone: float, head: float) -> None:
    """Each batch's share in the running statistics of BatchNorm, in `backbone.` and behind it."""
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = backbone if name.startswith("backbone.") else head


def freeze_norms(model: nn.Module) -> None:
    """BatchNorm keeps its statistics and weights from now on, in training mode too."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval().requires_grad_(False)


def fold(network: nn.Module) -> None:
    """In place, for inference: BatchNorm into the convolution before it, weights standardized.

    A BatchNorm is taken to follow the Conv2d that its module names just before it, as in
    torchvision's blocks.
    """
    for module in network.modules():
        if isinstance(module, WSConv2d):
            with torch.no_grad():
                module.weight.copy_(module.standardized())
            module.__class__ = nn.Conv2d  # the other way of set_norm
        for (conv_name, conv), (norm_name, norm) in pairwise([*module.named_children()]):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, NORMS):
                setattr(module, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(module, norm_name, nn.Identity())
