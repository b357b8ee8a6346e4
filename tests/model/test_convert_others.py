"""Foreign checkpoints of the other architectures; test_convert.py does DeepLabV3's."""

import pytest
import segmentation_models_pytorch as smp
import torch
import torchvision
from helpers import fails, randomize, run
from torch import nn
from torch.nn import functional as F

from model import build_model
from model.convert import convert


def unit(inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]


def upsampled(x: torch.Tensor, size: torch.Size, corners: bool = True) -> torch.Tensor:
    return F.interpolate(x, size, mode="bilinear", align_corners=corners)


def dilated(layer: nn.Module, rate: int, first: int) -> None:
    """Stride 1; `first`: rate of the first block."""
    for number, block in enumerate(layer):
        own = first if number == 0 else rate
        block.conv2.stride, block.conv2.dilation, block.conv2.padding = (1, 1), own, own
    layer[0].downsample[0].stride = (1, 1)


class Semseg(nn.Module):
    """ResNet-50 with a stem of 64, 64 and 128 channels, all 3x3 of layer3 and layer4 dilated."""

    def __init__(self, classes: int = 19) -> None:
        super().__init__()
        body = torchvision.models.resnet50(weights=None)
        stem = [*unit(3, 64, 3, 2), *unit(64, 64, 3), *unit(64, 128, 3), nn.MaxPool2d(3, 2, 1)]
        self.layer0 = nn.Sequential(*stem)
        for name in ("layer1", "layer2", "layer3", "layer4"):
            setattr(self, name, getattr(body, name))
        self.layer1[0].conv1 = nn.Conv2d(128, 64, 1, bias=False)
        self.layer1[0].downsample[0] = nn.Conv2d(128, 256, 1, bias=False)
        dilated(self.layer3, 2, 2)
        dilated(self.layer4, 4, 4)
        head = (nn.Dropout2d(0.1), nn.Conv2d(512, classes, 1))
        self.cls = nn.Sequential(*unit(4096, 512, 3), *head)
        aux = (nn.Dropout2d(0.1), nn.Conv2d(256, classes, 1))
        self.aux = nn.Sequential(*unit(1024, 256, 3), *aux)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        x = self.layer0(images)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


class SemsegPSP(Semseg):
    def __init__(self) -> None:
        super().__init__()
        self.ppm = nn.Module()
        self.ppm.features = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(bins), *unit(2048, 512)) for bins in (1, 2, 3, 6)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.features(images)
        wide = [upsampled(part(x), x.shape[2:]) for part in self.ppm.features]
        return upsampled(self.cls(torch.cat([x, *wide], 1)), images.shape[2:])


class SemsegPSA(Semseg):
    """Collect and distribute, a window of 9x9 at half of the map's resolution."""

    SIDE = 9

    def __init__(self) -> None:
        super().__init__()
        psa = self.psa = nn.Module()
        for end in ("", "_p"):
            setattr(psa, f"reduce{end}", nn.Sequential(*unit(2048, 512)))
            last = nn.Conv2d(512, self.SIDE**2, 1, bias=False)
            setattr(psa, f"attention{end}", nn.Sequential(*unit(512, 512), last))
        psa.proj = nn.Sequential(*unit(1024, 2048))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x, parts = self.features(images), []
        for end in ("", "_p"):
            small = [(length - 1) // 2 + 1 for length in x.shape[2:]]
            reduced = upsampled(getattr(self.psa, f"reduce{end}")(x), small)
            said = getattr(self.psa, f"attention{end}")(reduced)
            # masked[:, a, b]: what position b gets from position a
            masked = torch.zeros(len(x), small[0] * small[1], small[0] * small[1])
            half = self.SIDE // 2
            for row in range(small[0]):
                for column in range(small[1]):
                    for i in range(max(0, row - half), min(small[0], row + half + 1)):
                        for j in range(max(0, column - half), min(small[1], column + half + 1)):
                            channel = (i - row + half) * self.SIDE + j - column + half
                            here, there = row * small[1] + column, i * small[1] + j
                            at = (there, here) if end == "" else (here, there)
                            masked[:, at[0], at[1]] = said[:, channel, row, column]
            parts.append((reduced.flatten(2) @ masked.softmax(1)).view(reduced.shape))
        wide = upsampled(self.psa.proj(torch.cat(parts, 1)), x.shape[2:])
        return upsampled(self.cls(torch.cat([x, wide], 1)), images.shape[2:])


class ConvModule(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int = 1) -> None:
        super().__init__()
        self.conv, self.bn, _ = unit(inputs, outputs, kernel)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn(self.conv(x)))


class Mmseg(nn.Module):
    """ResNet-50 with or without the deep stem; the first block of a stage has the rate before."""

    def __init__(self, *, deep_stem: bool = True, stride: int = 8, aux: bool = True) -> None:
        super().__init__()
        body = self.backbone = torchvision.models.resnet50(weights=None)
        del body.fc
        if deep_stem:
            del body.conv1, body.bn1
            body.stem = nn.Sequential(*unit(3, 32, 3, 2), *unit(32, 32, 3), *unit(32, 64, 3))
        if stride == 8:
            dilated(body.layer3, 2, 1)
            dilated(body.layer4, 4, 2)
        self.decode_head = nn.Module()
        if aux:
            self.auxiliary_head = nn.Module()
            self.auxiliary_head.convs = nn.Sequential(ConvModule(1024, 256, 3))
            self.auxiliary_head.conv_seg = nn.Conv2d(256, 19, 1)

    def features(self, images: torch.Tensor) -> list[torch.Tensor]:
        body = self.backbone
        x = body.stem(images) if hasattr(body, "stem") else F.relu(body.bn1(body.conv1(images)))
        found = [F.max_pool2d(x, 3, 2, 1)]
        for layer in (body.layer1, body.layer2, body.layer3, body.layer4):
            found.append(layer(found[-1]))
        return found[1:]


class MmsegPSP(Mmseg):
    def __init__(self, **how: bool) -> None:
        super().__init__(**how)
        head = self.decode_head
        head.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(bins), ConvModule(2048, 512))
            for bins in (1, 2, 3, 6)
        )
        head.bottleneck = ConvModule(4096, 512, 3)
        head.conv_seg = nn.Conv2d(512, 19, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        head, x = self.decode_head, self.features(images)[3]
        wide = [upsampled(part(x), x.shape[2:], False) for part in head.psp_modules]
        return head.conv_seg(head.bottleneck(torch.cat([x, *wide], 1)))


class MmsegPSP18(MmsegPSP):
    """On ResNet-18, whose blocks dilate their first convolution only, heads of 128 and 64."""

    def __init__(self) -> None:
        super().__init__(deep_stem=False)
        body = self.backbone = torchvision.models.resnet18(weights=None)
        del body.fc
        for layer, rates in ((body.layer3, (1, 2)), (body.layer4, (2, 4))):
            layer[0].conv1.stride = layer[0].downsample[0].stride = (1, 1)
            for part, rate in zip(layer, rates, strict=True):
                part.conv1.dilation = part.conv1.padding = (rate, rate)
        head = self.decode_head
        for part in head.psp_modules:
            part[1] = ConvModule(512, 128)
        head.bottleneck, head.conv_seg = ConvModule(1024, 128, 3), nn.Conv2d(128, 19, 1)
        self.auxiliary_head.convs = nn.Sequential(ConvModule(256, 64, 3))
        self.auxiliary_head.conv_seg = nn.Conv2d(64, 19, 1)


class MmsegFCN(Mmseg):
    def __init__(self) -> None:
        super().__init__()
        head = self.decode_head
        head.convs = nn.Sequential(ConvModule(2048, 512, 3), ConvModule(512, 512, 3))
        head.conv_cat = ConvModule(2560, 512, 3)
        head.conv_seg = nn.Conv2d(512, 19, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        head, x = self.decode_head, self.features(images)[3]
        return head.conv_seg(head.conv_cat(torch.cat([x, head.convs(x)], 1)))


class SeparableModule(nn.Module):
    def __init__(self, inputs: int, outputs: int, rate: int = 1) -> None:
        super().__init__()
        self.depthwise_conv = ConvModule(inputs, inputs, 3)
        conv = nn.Conv2d(inputs, inputs, 3, 1, rate, rate, inputs, bias=False)
        self.depthwise_conv.conv = conv
        self.pointwise_conv = ConvModule(inputs, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pointwise_conv(self.depthwise_conv(x))


class MmsegPlus(Mmseg):
    """Image pooling comes first, low-level features last, 12 of them beside ResNet-18's 128."""

    def __init__(self, low: int = 48) -> None:
        super().__init__()
        head = self.decode_head
        head.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvModule(2048, 512))
        atrous = [SeparableModule(2048, 512, rate) for rate in (12, 24, 36)]
        head.aspp_modules = nn.ModuleList([ConvModule(2048, 512), *atrous])
        head.bottleneck = ConvModule(2560, 512, 3)
        head.c1_bottleneck = ConvModule(256, low)
        both = SeparableModule(512 + low, 512), SeparableModule(512, 512)
        head.sep_bottleneck = nn.Sequential(*both)
        head.conv_seg = nn.Conv2d(512, 19, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        head, (low, _, _, x) = self.decode_head, self.features(images)
        pooled = head.image_pool(x).expand(-1, -1, *x.shape[2:])
        x = head.bottleneck(torch.cat([pooled, *(part(x) for part in head.aspp_modules)], 1))
        both = [upsampled(x, low.shape[2:], False), head.c1_bottleneck(low)]
        return head.conv_seg(head.sep_bottleneck(torch.cat(both, 1)))


class MmsegFPN(Mmseg):
    """A 3x3 on every merged level, BatchNorm in the head, upsampling by 2 after convolutions."""

    def __init__(self) -> None:
        super().__init__(stride=32, aux=False)
        neck, head = nn.Module(), self.decode_head
        self.neck = neck
        for name in ("lateral_convs", "fpn_convs"):
            setattr(neck, name, nn.ModuleList(nn.Module() for _ in range(4)))
        head.scale_heads = nn.ModuleList()
        for level, channels in enumerate((256, 512, 1024, 2048)):
            neck.lateral_convs[level].conv = nn.Conv2d(channels, 256, 1)
            neck.fpn_convs[level].conv = nn.Conv2d(256, 256, 3, padding=1)
            parts = []
            for number in range(max(level, 1)):
                parts.append(ConvModule(128 if number else 256, 128, 3))
                if level:
                    parts.append(nn.Upsample(scale_factor=2, mode="bilinear"))
            head.scale_heads.append(nn.Sequential(*parts))
        head.conv_seg = nn.Conv2d(128, 19, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        neck, head = self.neck, self.decode_head
        maps = zip(neck.lateral_convs, self.features(images), strict=True)
        levels = [lateral.conv(x) for lateral, x in maps]
        for n in (2, 1, 0):
            levels[n] = levels[n] + F.interpolate(levels[n + 1], levels[n].shape[2:])
        parts = zip(head.scale_heads, neck.fpn_convs, levels, strict=True)
        return head.conv_seg(sum(part(out.conv(x)) for part, out, x in parts))


class VainFPlus(nn.Module):
    """torchvision's ResNet-50 at stride 16; 48 low-level channels before those of ASPP."""

    def __init__(self, classes: int = 21) -> None:
        super().__init__()
        body = self.backbone = torchvision.models.resnet50(weights=None)
        del body.fc
        dilated(body.layer4, 2, 1)
        head = self.classifier = nn.Module()
        head.project = nn.Sequential(*unit(256, 48))
        head.aspp = torchvision.models.segmentation.deeplabv3.ASPP(2048, [6, 12, 18])
        head.classifier = nn.Sequential(*unit(304, 256, 3), nn.Conv2d(256, classes, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        body, head = self.backbone, self.classifier
        low = body.layer1(F.max_pool2d(F.relu(body.bn1(body.conv1(images))), 3, 2, 1))
        x = head.aspp(body.layer4(body.layer3(body.layer2(low))))
        x = upsampled(x, low.shape[2:], False)
        return head.classifier(torch.cat([head.project(low), x], 1))


class TorchvisionFCN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        own = torchvision.models.segmentation.fcn_resnet50(
            weights=None, weights_backbone=None, aux_loss=True
        )
        self.backbone, self.classifier = own.backbone, own.classifier
        self.aux_classifier = own.aux_classifier

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.backbone(images)["out"])


def smp_plus() -> nn.Module:
    return smp.DeepLabV3Plus("resnet18", encoder_weights=None, classes=19)


CASES = {  # network, its architecture here
    "semseg PSPNet": (SemsegPSP, "pspnet"),
    "semseg PSANet": (SemsegPSA, "psanet"),
    "mmsegmentation PSPNet": (lambda: MmsegPSP(deep_stem=True), "pspnet"),
    "mmsegmentation PSPNet b": (lambda: MmsegPSP(deep_stem=False), "pspnet"),
    "mmsegmentation PSPNet r18b": (MmsegPSP18, "pspnet"),
    "mmsegmentation FCN": (MmsegFCN, "fcn"),
    "mmsegmentation DeepLabV3+": (MmsegPlus, "deeplabv3plus"),
    "mmsegmentation DeepLabV3+ of 12": (lambda: MmsegPlus(12), "deeplabv3plus"),
    "mmsegmentation FPN": (MmsegFPN, "fpn"),
    "segmentation_models_pytorch DeepLabV3+": (smp_plus, "deeplabv3plus"),
    "segmentation_models_pytorch FPN": (
        lambda: smp.FPN("resnet18", encoder_weights=None, classes=19),
        "fpn",
    ),
    "VainF DeepLabV3+": (VainFPlus, "deeplabv3plus"),
    "torchvision FCN": (TorchvisionFCN, "fcn"),
}


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_the_converted_network_gives_the_same_logits(name):
    build, architecture = CASES[name]
    theirs = build().eval()
    randomize(theirs)
    found = convert({f"module.{k}": v for k, v in theirs.state_dict().items()})
    assert (found.source, found.network["name"]) == (name.split()[0], architecture)
    ours = build_model(**found.network).eval()
    ours.load_state_dict(found.weights)
    # mmsegmentation's FPN and SMP double sizes, so they need multiples of 32.
    size = (64, 96) if architecture == "fpn" or "SMP" in name or "models" in name else (65, 97)
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    expected = theirs(images)

    def difference(network: nn.Module) -> float:
        logits = network(images)["out"]
        if logits.shape != expected.shape:
            logits = upsampled(logits, expected.shape[2:])
        return ((logits - expected).abs().max() / expected.std()).item()

    assert difference(ours) <= 1e-5
    # A negative control: one of the conventions wrong.
    wrong = dict(found.network)
    if "contract" in wrong:
        wrong["contract"] = not wrong["contract"]
    elif "align_corners" in wrong:
        wrong["align_corners"] = not wrong["align_corners"]
    else:
        wrong |= {"contract": False} if "output_stride" in wrong else {"output_convs": False}
    other = build_model(**wrong).eval()
    other.load_state_dict(found.weights, strict="output_convs" not in wrong)
    assert difference(other) > 1e-3


def test_one_branch_of_psanet_is_refused():
    weights = {k: v for k, v in SemsegPSA().state_dict().items() if "_p." not in k}
    with pytest.raises(ValueError, match="one of its branches: the file does not say which"):
        convert(weights)


def test_the_name_of_an_mmsegmentation_file_says_the_stride(tmp_path):
    """The keys do not. A file of train.py has torchvision's keys."""
    logs, convert_file = ("--log_root", tmp_path), "utils/convert_checkpoint.py"
    path = tmp_path / "pspnet_r50-d32_512x1024_80k_cityscapes_20220316_224840-9092b254.pth"
    torch.save({"state_dict": MmsegPSP(stride=32).state_dict()}, path)
    for option, stride in (((), 32), (("--output_stride", "16"), 16)):
        done = run(convert_file, path, *logs, *option, "--run_name", f"at{stride}")
        assert f"pspnet, resnet50c at stride {stride}, 19 classes" in done.stdout, done.stderr
    other = path.rename(tmp_path / "fcn_d6_r50-d16_512x1024_80k_cityscapes.pth")
    fails(run(convert_file, other, *logs), other.name, "in the head of FCN", "without fcn_d6")
    own = tmp_path / "at32" / "checkpoints" / "last.pth"
    fails(run(convert_file, own, *logs), "a checkpoint of train.py", "--checkpoint")


def test_a_network_without_an_output_stride_through_the_command(tmp_path):
    path, logs = tmp_path / "theirs.pth", ("--log_root", tmp_path)
    torch.save(smp.FPN("resnet18", encoder_weights=None, classes=19).state_dict(), path)
    words = ("utils/convert_checkpoint.py", path, *logs)
    done = run(*words)
    assert done.returncode == 0 and "fpn, resnet18, 19 classes: " in done.stdout, done.stderr
    words = (*words, "--run_name", "other", "--output_stride", "8")
    fails(run(*words), "theirs.pth: fpn has no option output_stride")
