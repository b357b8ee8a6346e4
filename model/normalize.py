"""From uint8 pixels to what a network takes, on the device."""

import torch
from torch import nn

IMAGENET_MEAN = (123.675, 116.28, 103.53)  # RGB, of uint8 values; torchvision's (0.485, ...) * 255
IMAGENET_STD = (58.395, 57.12, 57.375)
COPIES: dict[torch.device, torch.Tensor] = {}  # of both


def distort(images: torch.Tensor, colors: torch.Tensor) -> torch.Tensor:
    """(N,H,W,3) uint8, (N,3,4) -> the same size in float32, 0 to 255; on the images' device."""
    pixels = images.flatten(1, 2).float()
    pixels = torch.baddbmm(colors[:, None, :, 3], pixels, colors[:, :, :3].mT)
    return pixels.clamp_(0, 255).view(images.shape)


def normalize(images: torch.Tensor) -> torch.Tensor:
    """(N,H,W,3) RGB, 0 to 255 -> (N,3,H,W) float32, channels_last, ImageNet mean 0, deviation 1."""
    count, height, width, channels = images.shape
    # Lines as rows of 3W numbers: three channels alone are too few to compute fast (16 x, CPU).
    rows = images.reshape(count, height, width * channels).to(torch.float32, copy=True)
    mean, std = channel_statistics(images.device).repeat(1, width)
    return rows.sub_(mean).div_(std).view(images.shape).permute(0, 3, 1, 2)


def channel_statistics(device: torch.device) -> torch.Tensor:
    """(2,3): mean and deviation of the channels; copied to a GPU once, not at every step."""
    if device not in COPIES:
        COPIES[device] = torch.tensor([IMAGENET_MEAN, IMAGENET_STD], device=device)
    return COPIES[device]


class FromPixels(nn.Module):
    """A network behind its preprocessing: one module, so that both are compiled together."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        torch.compiler.assume_constant_result(channel_statistics)  # imports too much for --help

    def forward(self, images: torch.Tensor, colors: torch.Tensor | None = None) -> dict:
        """(N,H,W,3) uint8[, (N,3,4) as distort takes them] -> what the network gives."""
        with torch.autocast(images.device.type, enabled=False):
            normalized = normalize(images if colors is None else distort(images, colors))
        return self.network(normalized)
