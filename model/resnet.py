"""torchvision's ResNet with strides replaced by dilation: any depth, output stride 8, 16 or 32.

Dilation does not change weight shapes, so ImageNet weights fit. torchvision's
`replace_stride_with_dilation` does not support BasicBlock, so not ResNet-18 and ResNet-34.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from model.layers import Norm, conv_norm_relu, set_norm

Contract = bool | Literal["conv1_only"]

PLAIN = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
# ResNet-C: three 3x3 convolutions instead of the 7x7; ResNet-D: also average pooling instead of the
# stride of the 1x1 beside a block (He et al., arXiv 1812.01187, section 4.1). ImageNet weights of
# mmsegmentation and timm.
MMSEG = "https://download.openmmlab.com/pretrain/third_party"
TIMM = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-weights"
VARIANTS = {
    "resnet18c": f"{MMSEG}/resnet18_v1c-b5776b93.pth",
    "resnet50c": f"{MMSEG}/resnet50_v1c-2cccc1ad.pth",
    "resnet101c": f"{MMSEG}/resnet101_v1c-e67eebb6.pth",
    "resnet50d": f"{TIMM}/resnet50d_ra2-464e36ba.pth",
    "resnet101d": f"{TIMM}/resnet101d_ra2-2803ffab.pth",
}
RESNETS = (*PLAIN, *VARIANTS)
STEM = (32, 32, 64)  # channels of the three convolutions


@dataclass(frozen=True)
class WeightFile:
    """Source of pretrained weights."""

    name: str  # of the file
    page: str  # web page with the file, for manual download
    url: str | None = None  # for automatic download


def torchvision_file(name: str) -> WeightFile:
    """torchvision's first ImageNet weights of a network."""
    import torchvision

    url = torchvision.models.get_model_weights(name).IMAGENET1K_V1.url
    return WeightFile(url.rpartition("/")[2], url, url)


class ResNet(nn.Module):
    """Features of the four stages. state_dict keys are torchvision's, without `fc`."""

    def __init__(
        self,
        name: str,
        *,
        output_stride: int = 8,
        multi_grid: tuple[int, ...] = (1, 1, 1),
        contract: Contract | None = None,
        norm: Norm = "bn",
        stem: tuple[int, int, int] | None = None,
        weights: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """name: one of RESNETS. weights: a ResNet state_dict; entries of its classifier `fc` are
        ignored. stem: channels of the three convolutions; the default is that of `name`.
        """
        import torchvision  # takes seconds, which would slow down --help and option errors

        super().__init__()
        plain = name.rstrip("cd")
        body = torchvision.models.get_model(plain, weights=None)
        for part in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
            setattr(self, part, getattr(body, part))
        if stem is not None or name != plain:
            set_deep_stem(self, *(stem or STEM))
        if name.endswith("d"):
            pool_beside_blocks(self)
        set_norm(self, norm)
        if weights is not None:
            kept = {key: value for key, value in weights.items() if not key.startswith("fc.")}
            self.load_state_dict(kept)
        dilate(self, output_stride, multi_grid=multi_grid, contract=contract)
        self.output_stride = output_stride
        self.channels = [stage[-1].conv2.out_channels for stage in self.stages]
        if hasattr(self.layer4[-1], "conv3"):
            self.channels = [stage[-1].conv3.out_channels for stage in self.stages]

    @staticmethod
    def weight_file(name: str, norm: Norm) -> WeightFile:
        """ImageNet weights; users must download those with GroupNorm themselves."""
        if norm != "bn":
            file = f"R-{name.removeprefix('resnet')}-{norm.upper().replace('_', '-')}.pth.tar"
            return WeightFile(file, "github.com/joe-siyuan-qiao/pytorch-classification")
        if url := VARIANTS.get(name):
            return WeightFile(url.rpartition("/")[2], url, url)
        return torchvision_file(name)

    @property
    def stages(self) -> tuple[nn.Sequential, ...]:
        return self.layer1, self.layer2, self.layer3, self.layer4

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """(N,3,H,W) -> [(N,C,H/4,W/4), ..., (N,C,H/s,W/s)], the outputs of layer1..layer4."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


def set_deep_stem(resnet: nn.Module, first: int, second: int, last: int) -> None:
    """Replace the 7x7 convolution, in place; bn1 and relu follow the last of the three.

    last: 64, or for bottlenecks another number, which layer1 then takes (semseg: 128).
    """
    down = nn.Conv2d(3, first, 3, stride=2, padding=1, bias=False)
    between = conv_norm_relu(first, second, 3)
    end = nn.Conv2d(second, last, 3, padding=1, bias=False)
    resnet.conv1 = nn.Sequential(down, nn.BatchNorm2d(first), nn.ReLU(inplace=True), *between, end)
    if last != resnet.bn1.num_features:
        resnet.bn1, block = nn.BatchNorm2d(last), resnet.layer1[0]
        block.conv1 = nn.Conv2d(last, block.conv1.out_channels, 1, bias=False)
        block.downsample[0] = nn.Conv2d(last, block.downsample[0].out_channels, 1, bias=False)


def pool_beside_blocks(resnet: nn.Module) -> None:
    """ResNet-D, in place: a mean over each stride beside the blocks, then a 1x1 convolution."""
    for block in resnet.modules():
        if getattr(block, "downsample", None) is not None:
            conv, norm = block.downsample
            pool = nn.AvgPool2d(conv.stride, ceil_mode=True, count_include_pad=False)
            conv.stride = (1, 1)
            block.downsample = nn.Sequential(pool, conv, norm)


def dilate(
    resnet: nn.Module,
    output_stride: int,
    *,
    multi_grid: tuple[int, ...] = (1, 1, 1),
    contract: Contract | None = None,
) -> None:
    """Replace, in place, the strides beyond `output_stride` by dilation (DeepLabV3 section 3.1).

    multi_grid: factors for the rates of layer4's blocks, including the first (section 3.2); later
        blocks repeat the last factor.
    contract: rate of the first block in a dilated stage. True: that of the previous stage
        (torchvision, mmseg); False: that of its stage (fregu856, semseg, SMP); "conv1_only": as
        True, but in a BasicBlock only the first 3x3 is dilated (mmseg's ResNet-18). None: False for
        BasicBlock, else True.
    """
    if output_stride not in (8, 16, 32):
        raise ValueError(f"output_stride must be 8, 16 or 32, got {output_stride}")
    if contract is None:
        contract = hasattr(resnet.layer4[0], "conv3")
    rate = 1
    for stride, layer in ((8, resnet.layer2), (16, resnet.layer3), (32, resnet.layer4)):
        if stride <= output_stride:
            continue
        previous, rate = rate, rate * 2
        grid = multi_grid if layer is resnet.layer4 and set(multi_grid) != {1} else None
        for number, block in enumerate(layer):
            if grid:
                dilation = rate * grid[min(number, len(grid) - 1)]
            else:
                dilation = previous if number == 0 and contract else rate
            dilate_block(block, dilation, only_conv1=contract == "conv1_only")


def dilate_block(block: nn.Module, dilation: int, *, only_conv1: bool) -> None:
    for name, conv in block.named_modules():
        if isinstance(conv, nn.AvgPool2d):
            conv.kernel_size = conv.stride = (1, 1)
        if isinstance(conv, nn.Conv2d):
            conv.stride = (1, 1)
            if conv.kernel_size == (3, 3) and not (only_conv1 and name == "conv2"):
                conv.dilation = conv.padding = (dilation, dilation)
