"""Convert uint8 pixels to the input of a network, on the device."""

import torch
from torch import nn

IMAGENET_MEAN = (123.675, 116.28, 103.53)  # RGB, for uint8 values: torchvision's (0.485, ...) * 255
IMAGENET_STD = (58.395, 57.12, 57.375)
COPIES: dict[torch.device, torch.Tensor] = {}  # mean and std on each device


def distort(images: torch.Tensor, colors: torch.Tensor) -> torch.Tensor:
    """(N,H,W,3) uint8, (N,3,4) affine maps of RGB -> (N,H,W,3) float32, 0 to 255."""
    pixels = images.flatten(1, 2).float()
    pixels = torch.baddbmm(colors[:, None, :, 3], pixels, colors[:, :, :3].mT)
    return pixels.clamp_(0, 255).view(images.shape)


def normalize(images: torch.Tensor) -> torch.Tensor:
    """(N,H,W,3) RGB, 0 to 255 -> (N,3,H,W) float32, channels_last, ImageNet mean 0, deviation 1."""
    count, height, width, channels = images.shape
    # Rows of 3W numbers: on a CPU 16 times as fast as computing with three channels per pixel.
    rows = images.reshape(count, height, width * channels).to(torch.float32, copy=True)
    mean, std = channel_statistics(images.device).repeat(1, width)
    return rows.sub_(mean).div_(std).view(images.shape).permute(0, 3, 1, 2)


def channel_statistics(device: torch.device) -> torch.Tensor:
    """(2,3): mean and deviation of the channels; cached, so that a GPU copies them only once."""
    if device not in COPIES:
        COPIES[device] = torch.tensor([IMAGENET_MEAN, IMAGENET_STD], device=device)
    return COPIES[device]


class FromPixels(nn.Module):
    """Preprocessing and network in one module, so that torch.compile compiles both together."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        torch.compiler.assume_constant_result(channel_statistics)  # slow import, so not at the top

    def forward(
        self,
        images: torch.Tensor,
        colors: torch.Tensor | None = None,
        targets: dict[str, torch.Tensor] | None = None,
    ) -> dict:
        """(N,H,W,3) uint8[, (N,3,4) colors of distort()][, the network's targets] -> its output."""
        with torch.autocast(images.device.type, enabled=False):
            normalized = normalize(images if colors is None else distort(images, colors))
        return self.network(normalized, *([targets] if targets else []))
