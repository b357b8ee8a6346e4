"""Building blocks that more than one architecture uses."""

from torch import nn


def conv_norm_relu(
    inputs: int, outputs: int, kernel: int = 1, dilation: int = 1
) -> list[nn.Module]:
    """Convolution without bias that keeps the size, BatchNorm, ReLU."""
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def freeze_norms(model: nn.Module) -> None:
    """BatchNorm keeps its statistics and weights from now on, in training mode too."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval().requires_grad_(False)
