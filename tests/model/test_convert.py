"""Foreign checkpoints: each project's network restated here, its logits against the converted's.

What is restated are facts (names, strides, dilations, order of channels), from the projects'
papers and pages; weights and statistics are random throughout, so a wrong convention shows.
"""

import cv2
import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
import torchvision
from helpers import fails, randomize, run, train, write_cityscapes
from torch import nn
from torch.nn import functional as F
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.segmentation.deeplabv3 import DeepLabHead

from evaluation.inference import predict_logits
from evaluation.trained import load_model
from model import build_model
from model.compat import Compat
from model.convert import convert
from model.ops.upsample_argmax import upsample_argmax
from model.resnet import dilate
from utils.data.label_table import CITYSCAPES
from utils.training.config import Config
from utils.training.network import take_over

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
PLANES = (64, 128, 256, 512)


class Standardized(nn.Conv2d):
    """Weight Standardization as chenxi116 and joe-siyuan-qiao write it."""

    def forward(self, x):
        weight = self.weight
        mean = weight.mean(1, keepdim=True).mean(2, keepdim=True).mean(3, keepdim=True)
        weight = weight - mean
        deviation = weight.view(weight.size(0), -1).std(dim=1).view(-1, 1, 1, 1) + 1e-5
        weight = weight / deviation
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation)


class Block(nn.Module):
    """BasicBlock or Bottleneck (stride on the 3x3) with the dilation of each 3x3 given."""

    def __init__(self, inputs, planes, stride, rates, deep, conv=nn.Conv2d, norm=nn.BatchNorm2d):
        super().__init__()
        outputs = planes * (4 if deep else 1)
        spatial = {"kernel_size": 3, "stride": stride, "padding": rates[0], "dilation": rates[0]}
        if deep:
            self.conv1 = conv(inputs, planes, 1, bias=False)
            self.conv2 = conv(planes, planes, bias=False, **spatial)
            self.conv3 = conv(planes, outputs, 1, bias=False)
            self.bn3 = norm(outputs)
        else:
            self.conv1 = conv(inputs, planes, bias=False, **spatial)
            self.conv2 = conv(planes, planes, 3, padding=rates[1], dilation=rates[1], bias=False)
        self.bn1, self.bn2 = norm(planes), norm(planes)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                conv(inputs, outputs, 1, stride=stride, bias=False), norm(outputs)
            )

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if hasattr(self, "conv3"):
            y = self.bn3(self.conv3(F.relu(y)))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


def stage(number, depth, stride, rates, **options):
    """Stage 1 to 4 of a ResNet; `rates`: the dilations of each block's one or two 3x3."""
    deep = depth >= 50
    widen = 4 if deep else 1
    inputs = 64 if number == 1 else PLANES[number - 2] * widen
    blocks = []
    for rate in rates:
        pair = rate if isinstance(rate, tuple) else (rate, rate)
        blocks.append(Block(inputs, PLANES[number - 1], stride, pair, deep, **options))
        inputs, stride = PLANES[number - 1] * widen, 1
    return nn.Sequential(*blocks)


class Fregu856(nn.Module):
    """resnet.resnet: torchvision's children; own layer4 and layer5; convolutions with biases."""

    def __init__(self, depth, stride, *, aligned=False):
        super().__init__()
        self.aligned = aligned
        n = BLOCKS[depth]
        body = [
            nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
            nn.MaxPool2d(3, 2, 1), stage(1, depth, 1, [1] * n[0]), stage(2, depth, 2, [1] * n[1]),
        ]  # fmt: skip
        if stride == 16:
            body.append(stage(3, depth, 2, [1] * n[2]))
        self.resnet = nn.Module()
        self.resnet.resnet = nn.Sequential(*body)
        if stride == 8:
            self.resnet.layer4 = stage(3, depth, 1, [2] * n[2])
        self.resnet.layer5 = stage(4, depth, 1, [4 if stride == 8 else 2] * n[3])
        self.aspp = nn.Module()
        wide = 2048 if depth >= 50 else 512
        convs = {
            "conv_1x1_1": nn.Conv2d(wide, 256, 1), "conv_1x1_2": nn.Conv2d(wide, 256, 1),
            "conv_1x1_3": nn.Conv2d(1280, 256, 1),
            **{f"conv_3x3_{i}": nn.Conv2d(wide, 256, 3, padding=6 * i, dilation=6 * i)
               for i in (1, 2, 3)},
        }  # fmt: skip
        for name, conv in convs.items():
            setattr(self.aspp, name, conv)
            setattr(self.aspp, f"bn_{name}", nn.BatchNorm2d(256))
        self.aspp.conv_1x1_4 = nn.Conv2d(256, 20, 1)

    def forward(self, images):
        x = self.resnet.resnet(images)
        if hasattr(self.resnet, "layer4"):
            x = self.resnet.layer4(x)
        x = self.resnet.layer5(x)

        def part(name, y):
            return F.relu(getattr(self.aspp, f"bn_{name}")(getattr(self.aspp, name)(y)))

        pooled = part("conv_1x1_2", F.adaptive_avg_pool2d(x, 1))
        pooled = F.interpolate(pooled, x.shape[-2:], mode="bilinear", align_corners=self.aligned)
        names = ("conv_1x1_1", "conv_3x3_1", "conv_3x3_2", "conv_3x3_3")
        y = torch.cat([*(part(name, x) for name in names), pooled], 1)
        y = self.aspp.conv_1x1_4(part("conv_1x1_3", y))
        return F.interpolate(y, images.shape[-2:], mode="bilinear", align_corners=self.aligned)


class Chenxi116(nn.Module):
    """ResNet-50 or -101 at stride 16, first block of layer4 undilated; no 3x3 behind the ASPP."""

    def __init__(self, depth=50, classes=21, *, gn_ws=False):
        super().__init__()
        conv = Standardized if gn_ws else nn.Conv2d

        def norm(width):
            return nn.GroupNorm(32, width) if gn_ws else nn.BatchNorm2d(width)

        n, own = BLOCKS[depth], {"conv": conv, "norm": norm}
        self.conv1, self.bn1 = conv(3, 64, 7, 2, 3, bias=False), norm(64)
        self.layer1 = stage(1, depth, 1, [1] * n[0], **own)
        self.layer2 = stage(2, depth, 2, [1] * n[1], **own)
        self.layer3 = stage(3, depth, 2, [1] * n[2], **own)
        self.layer4 = stage(4, depth, 1, [1] + [2] * (n[3] - 1), **own)
        aspp = self.aspp = nn.Module()
        aspp.aspp1, aspp.aspp5 = (conv(2048, 256, 1, bias=False) for _ in range(2))
        for number in (2, 3, 4):
            rate = 6 * (number - 1)
            spatial = conv(2048, 256, 3, padding=rate, dilation=rate, bias=False)
            setattr(aspp, f"aspp{number}", spatial)
        for number in range(1, 6):
            setattr(aspp, f"aspp{number}_bn", norm(256))
        aspp.conv2, aspp.bn2 = conv(1280, 256, 1, bias=False), norm(256)
        aspp.conv3 = nn.Conv2d(256, classes, 1)

    def forward(self, images):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(images))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        aspp, parts = self.aspp, []
        for number in range(1, 6):
            y = F.adaptive_avg_pool2d(x, 1) if number == 5 else x
            y = F.relu(getattr(aspp, f"aspp{number}_bn")(getattr(aspp, f"aspp{number}")(y)))
            parts.append(y.expand(-1, -1, *x.shape[-2:]))
        y = aspp.conv3(F.relu(aspp.bn2(aspp.conv2(torch.cat(parts, 1)))))
        return F.interpolate(y, images.shape[-2:], mode="bilinear", align_corners=True)


class Mmseg(nn.Module):
    """Stride 8, first block of a stage with the rate before; BasicBlock: conv1 alone is dilated."""

    def __init__(self, depth, *, deep_stem, classes=19):
        super().__init__()
        n, deep = BLOCKS[depth], depth >= 50
        wide, width = (2048, 512) if deep else (512, 128)
        body = self.backbone = nn.Module()
        if deep_stem:
            body.stem = nn.Sequential(
                nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
                nn.Conv2d(32, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
                nn.Conv2d(32, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
            )  # fmt: skip
        else:
            body.conv1, body.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        rates = [[1] * n[0], [1] * n[1], [1] + [2] * (n[2] - 1), [2] + [4] * (n[3] - 1)]
        for number, each in enumerate(rates, 1):
            each = each if deep else [(rate, 1) for rate in each]
            setattr(body, f"layer{number}", stage(number, depth, 1 + (number == 2), each))
        head = self.decode_head = nn.Module()
        head.aspp_modules = nn.ModuleList(
            module(wide, width, 1 if rate == 1 else 3, rate) for rate in (1, 12, 24, 36)
        )
        head.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), module(wide, width, 1, 1))
        head.bottleneck = module(5 * width, width, 3, 1)
        head.conv_seg = nn.Conv2d(width, classes, 1)
        c4 = wide // 2
        self.auxiliary_head = nn.Module()
        self.auxiliary_head.convs = nn.Sequential(module(c4, c4 // 4, 3, 1))
        self.auxiliary_head.conv_seg = nn.Conv2d(c4 // 4, classes, 1)

    def forward(self, images):
        body, head = self.backbone, self.decode_head
        x = body.stem(images) if hasattr(body, "stem") else F.relu(body.bn1(body.conv1(images)))
        x = F.max_pool2d(x, 3, 2, 1)
        x = body.layer4(body.layer3(body.layer2(body.layer1(x))))
        pooled = F.interpolate(head.image_pool(x), x.shape[-2:], mode="bilinear")
        y = torch.cat([pooled, *(part(x) for part in head.aspp_modules)], 1)  # pooling first
        return head.conv_seg(head.bottleneck(y))


class ConvModule(nn.Module):
    def __init__(self, conv, norm):
        super().__init__()
        self.conv, self.bn = conv, norm

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


def module(inputs, outputs, kernel, rate):
    padding = 0 if kernel == 1 else rate
    conv = nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=rate, bias=False)
    return ConvModule(conv, nn.BatchNorm2d(outputs))


class VainF(nn.Module):
    """torchvision's parts at stride 16, the head one level deeper."""

    def __init__(self, classes=21):
        super().__init__()
        body = torchvision.models.resnet50(replace_stride_with_dilation=[False, False, True])
        self.backbone = IntermediateLayerGetter(body, {"layer4": "out"})
        self.classifier = nn.Module()
        self.classifier.classifier = DeepLabHead(2048, classes, (6, 12, 18))

    def forward(self, images):
        return self.classifier.classifier(self.backbone(images)["out"])


class TorchvisionOut(nn.Module):
    """Its logits before they are upsampled."""

    def __init__(self):
        super().__init__()
        own = torchvision.models.segmentation.deeplabv3_resnet50(
            weights=None, weights_backbone=None, aux_loss=True
        )
        self.backbone, self.classifier = own.backbone, own.classifier
        self.aux_classifier = own.aux_classifier

    def forward(self, images):
        return self.classifier(self.backbone(images)["out"])


def smp_deeplab(stride):
    return smp.DeepLabV3("resnet18", encoder_weights=None, classes=19, encoder_output_stride=stride)


FULL = {"resize": None, "bgr": False, "pad": None}  # to compare networks, without protocols
CASES = {
    "torchvision": (TorchvisionOut, {}),
    "VainF": (VainF, {}),
    "fregu856 resnet18 stride 8": (lambda: Fregu856(18, 8), {}),
    "fregu856 resnet34 stride 16": (lambda: Fregu856(34, 16), {}),
    "fregu856 resnet50 stride 16": (lambda: Fregu856(50, 16), {}),
    "PSG resnet18 stride 8": (lambda: Fregu856(18, 8, aligned=True), {"align_corners": True}),
    "chenxi116": (Chenxi116, {}),
    "mmsegmentation r18": (lambda: Mmseg(18, deep_stem=True), {}),
    "mmsegmentation r18b": (lambda: Mmseg(18, deep_stem=False), {}),
    "mmsegmentation r50b": (lambda: Mmseg(50, deep_stem=False), {}),
    "segmentation_models_pytorch": (lambda: smp_deeplab(8), {}),
    "segmentation_models_pytorch 16": (lambda: smp_deeplab(16), {"output_stride": 16}),
}


def both(build, options):
    """The restated network and the converted one, each in evaluation mode."""
    theirs = build()
    randomize(theirs)
    found = convert({f"module.{k}": v for k, v in theirs.state_dict().items()}, **options)
    network = dict(found.network)
    if "compat" in network:
        network["compat"] = network["compat"] | FULL
    ours = build_model(**network)
    ours.load_state_dict(found.weights)
    return theirs.eval(), ours.eval(), found


@torch.no_grad()
def difference(theirs, ours, images):
    """The largest, as a share of the reference's deviation."""
    expected, found = theirs(images), ours(images)["out"]
    if expected.shape != found.shape:
        found = F.interpolate(found, expected.shape[-2:], mode="bilinear", align_corners=True)
    return ((found - expected).abs().max() / expected.std()).item()


@pytest.mark.parametrize("name", CASES)
def test_the_converted_network_gives_the_same_logits(name):
    theirs, ours, found = both(*CASES[name])
    images = torch.randn(1, 3, 64, 128)
    assert found.source == name.split()[0].replace("PSG", "fregu856")
    assert difference(theirs, ours, images) <= 1e-5
    network = getattr(ours, "network", ours)
    stride, contract = found.network["output_stride"], found.network.get("contract", True)
    dilate(network.backbone, stride, contract=not contract)  # a negative control
    assert difference(theirs, ours, images) > 1e-3


@pytest.mark.slow
def test_group_norm_and_weight_standardization_agree_in_float64():
    theirs, ours, found = both(lambda: Chenxi116(101, gn_ws=True), {})
    assert found.network["norm"] == "gn_ws"
    assert len([key for key in found.weights if "backbone" in key]) == 312
    assert len(found.weights) == 332
    images = torch.randn(1, 3, 49, 65, dtype=torch.float64)
    assert difference(theirs.double(), ours.double(), images) <= 1e-10
    ours.align_corners = False  # a negative control
    assert difference(theirs, ours, images) > 1e-3


NETWORKS = {  # parameters, dilations of the first 3x3 in layer3, all in layer4, the ASPP's
    "torchvision": (42_004_074, [1, 2, 2, 2], [2, 4, 4], [12, 24, 36]),
    "VainF": (39_638_869, [1, 1, 1, 1], [1, 2, 2], [6, 12, 18]),
    "fregu856 resnet18 stride 8": (15_313_492, [2, 2, 2, 2], [4, 4, 4, 4], [6, 12, 18]),
    "fregu856 resnet34 stride 16": (25_421_652, [1, 1, 1, 1], [2] * 6, [6, 12, 18]),
    "fregu856 resnet50 stride 16": (39_048_276, [1, 1, 1, 1], [2, 2, 2], [6, 12, 18]),
    "chenxi116 resnet101": (58_040_661, [1, 1, 1, 1], [1, 2, 2], [6, 12, 18]),
    "mmsegmentation r18": (13_986_374, [1, 1, 2, 1], [2, 1, 4, 1], [12, 24, 36]),
    "mmsegmentation r18b": (13_967_142, [1, 1, 2, 1], [2, 1, 4, 1], [12, 24, 36]),
    "mmsegmentation r50": (68_113_030, [1, 2, 2, 2], [2, 4, 4], [12, 24, 36]),
    "mmsegmentation r50b": (68_093_798, [1, 2, 2, 2], [2, 4, 4], [12, 24, 36]),
    "mmsegmentation r101": (87_105_158, [1, 2, 2, 2], [2, 4, 4], [12, 24, 36]),
    "mmsegmentation r101b": (87_085_926, [1, 2, 2, 2], [2, 4, 4], [12, 24, 36]),
    "segmentation_models_pytorch": (15_903_571, [2, 2, 2, 2], [4, 4, 4, 4], [12, 24, 36]),
    "segmentation_models_pytorch 16": (15_903_571, [1, 1, 1, 1], [2, 2, 2, 2], [12, 24, 36]),
}
LARGE = {  # too large to run all of them here
    "mmsegmentation r50": (lambda: Mmseg(50, deep_stem=True), {}),
    "chenxi116 resnet101": (lambda: Chenxi116(101), {}),
    "mmsegmentation r101": (lambda: Mmseg(101, deep_stem=True), {}),
    "mmsegmentation r101b": (lambda: Mmseg(101, deep_stem=False), {}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_and_dilations_follow_the_table(name):
    build, options = (CASES | LARGE)[name]
    with torch.device("meta"):
        converted = convert(build().state_dict(), **options)
        network = build_model(**{**converted.network, "compat": None})

    def rates(layer):
        convs = [module for module in layer.modules() if isinstance(module, nn.Conv2d)]
        return [conv.dilation[0] for conv in convs if conv.kernel_size == (3, 3)]

    body = network.backbone
    aspp = [branch[0].dilation[0] for branch in network.classifier[0].convs[1:4]]
    count = sum(p.numel() for p in network.parameters())
    assert (count, rates(body.layer3)[:4], rates(body.layer4), aspp) == NETWORKS[name]


def test_unrolled_channels_are_another_network():
    theirs, ours, _ = both(lambda: Mmseg(18, deep_stem=False), {})
    weight = ours.classifier[0].project[0].weight
    weight.data = weight.data.roll(128, 1)
    assert difference(theirs, ours, torch.randn(1, 3, 97, 161)) > 1e-2


@pytest.mark.parametrize("aligned", [False, True])
def test_fregu856s_own_evaluation_is_reproduced(aligned):
    """Images made small by nearest neighbour, BGR, twice upsampled, 20 outputs: the same pixels."""
    theirs = Fregu856(18, 8, aligned=aligned)
    randomize(theirs)
    found = convert(theirs.state_dict(), align_corners=aligned)
    assert found.network["compat"]["resize"] == [512, 1024] and found.network["num_classes"] == 20
    found.network["compat"]["resize"] = [64, 128]
    ours = build_model(**found.network)
    ours.load_state_dict(found.weights)
    image = np.random.default_rng(0).integers(0, 256, (128, 256, 3), dtype=np.uint8)
    small = cv2.resize(image[..., ::-1], (128, 64), interpolation=cv2.INTER_NEAREST) / 255.0
    small = (small - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    inputs = torch.from_numpy(small.transpose(2, 0, 1)).float()[None]
    with torch.no_grad():
        logits = theirs.eval()(inputs)
        expected = F.interpolate(logits, (128, 256), mode="bilinear", align_corners=False).argmax(1)
        logits = predict_logits(ours.eval(), torch.from_numpy(image)[None], size=(128, 256))
    train_ids = upsample_argmax(logits, (128, 256))
    assert (train_ids == expected).float().mean() > 0.9999
    assert len(np.unique(train_ids)) >= 3
    ours.bgr = False  # a negative control
    with torch.no_grad():
        logits = predict_logits(ours, torch.from_numpy(image)[None], size=(128, 256))
    train_ids = upsample_argmax(logits, (128, 256))
    assert (train_ids == expected).float().mean() < 0.99


def test_chenxi116s_images_are_padded_with_the_mean():
    """VOC: to 513 pixels at the right and below; the result is cut to the image again."""
    network = build_model("deeplabv3", num_classes=21, output_stride=16).eval()
    compat = Compat(network, pad=(129, 129), align_corners=True)
    images = torch.randn(1, 3, 97, 130)
    with torch.no_grad():
        padded = network(F.pad(images, (0, 0, 0, 32)))["out"]
        expected = F.interpolate(padded, (129, 130), mode="bilinear", align_corners=True)[:, :, :97]
        assert torch.equal(compat(images)["out"], expected)
        with torch.autocast("cpu", torch.bfloat16):  # logits rounded after upsampling would tie
            low = network(F.pad(images, (0, 0, 0, 32)))["out"]
            full = compat(images)["out"]
        assert low.dtype == torch.bfloat16 and full.dtype == torch.float32
        smooth = F.interpolate(low.float(), (129, 130), mode="bilinear", align_corners=True)
        assert torch.equal(full, smooth[:, :, :97])
    classes = {c: convert(Chenxi116(50, c).state_dict()).network["compat"] for c in (19, 21)}
    assert classes[21]["pad"] == (513, 513) and classes[19]["pad"] == (1025, 2049)


def test_void_is_an_ignored_id():
    """fregu856's 20th output is no class: the official scorer sees id 0, "unlabeled"."""
    ids = CITYSCAPES.to_ids(np.array([[0, 18, 19]], np.uint8))
    assert ids.tolist() == [[7, 33, 0]]


def test_files_of_other_projects_through_the_commands(tmp_path):
    """A legacy file with a NumPy score beside the weights: converted, scored, fine-tuned."""
    root = write_cityscapes(tmp_path / "data", train=2, val=1)
    theirs = Fregu856(18, 8)
    randomize(theirs)
    kept = {k: v for k, v in theirs.state_dict().items() if "num_batches" not in k}  # torch 0.4
    path = tmp_path / "model_13.pth"
    content = {"state_dict": kept, "best_score": np.float64(0.5), "epoch": 580}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    logs = ["--log_root", tmp_path / "logs"]
    fails(run("evaluation/eval_on_val_for_metrics.py", "--checkpoint", path, *logs),
          "python utils/convert_checkpoint.py")  # fmt: skip
    convert_it = ["utils/convert_checkpoint.py", path, "--data_root", root, *logs]
    done = run(*convert_it)
    assert done.returncode == 0 and "fregu856's deeplabv3, resnet18" in done.stdout, done.stderr
    fails(run(*convert_it), "exists", "--run_name")
    run("utils/preprocess_data.py", "--data_root", root)
    done = run("evaluation/eval_on_val_for_metrics.py", "--checkpoint", "model_13", *logs)
    assert done.returncode == 0 and "bicycle" in done.stdout, done.stderr
    checkpoint = tmp_path / "logs" / "model_13" / "checkpoints" / "last.pth"
    network = load_model(checkpoint, output_stride=16)[1]["network"]
    assert network["atrous_rates"] == [3, 6, 9]  # 6, 12, 18 at stride 8: the same pixels
    train(
        Config(
            data_root=root, log_root=tmp_path / "logs", run_name="tuned", init_from=str(path),
            crop=(32, 64), batch_size=2, workers=0, steps=1, warmup_steps=0, device="cpu",
        )
    )  # fmt: skip
    state = torch.load(tmp_path / "logs/tuned/checkpoints/last.pth", weights_only=True)
    mean = state["model"]["backbone.layer1.0.bn1.running_mean"]
    assert (mean - kept["resnet.resnet.4.0.bn1.running_mean"]).abs().max() < 0.5
    # To other classes: its 20th output has no name.
    options = {"name": "deeplabv3", "num_classes": 2, "output_stride": 8, "post_conv": False}
    ours = build_model(**options)
    said = take_over(ours, checkpoint, options, ["road", "boat"])
    assert "class boat" in said and "class road" not in said
    rows = torch.load(checkpoint, weights_only=True)["model"]
    row = next(value for name, value in rows.items() if name.endswith("classifier.4.weight"))[0]
    assert torch.equal(ours.state_dict()["classifier.4.weight"][0], row)


def test_a_file_in_half_precision_becomes_float32():
    found = convert({k: v.half() for k, v in Mmseg(18, deep_stem=False).state_dict().items()})
    assert {value.dtype for value in found.weights.values()} == {torch.float32}


def test_unknown_files_are_one_line(tmp_path):
    weights = Mmseg(18, deep_stem=False).state_dict()
    logs = ["--log_root", tmp_path / "logs"]
    cases = {
        "foreign.pth": ({"blocks.0.attn.weight": torch.zeros(1)}, "keys blocks.0.attn.weight"),
        "more.pth": (
            weights | {"decode_head.gate.weight": torch.zeros(1)},
            "like mmsegmentation's, but unknown decode_head.gate.weight",
        ),
        "plus.pth": (
            weights | {"decode_head.c1_bottleneck.conv.weight": torch.zeros(1)},
            "like mmsegmentation's, but lacks classifier.3.weight",
        ),
        "lacks.pth": (
            {k: v for k, v in weights.items() if "layer4.1.bn2" not in k},
            "lacks backbone.layer4.1.bn2.weight",
        ),
        "list.pth": ([1], "holds no state_dict"),
    }
    for name, (content, words) in cases.items():
        torch.save(content, tmp_path / name)
        fails(run("utils/convert_checkpoint.py", tmp_path / name, *logs), name, words)
    other = convert(Mmseg(18, deep_stem=False, classes=7).state_dict())
    assert other.network["num_classes"] == 7
    torch.save(Mmseg(18, deep_stem=False, classes=7).state_dict(), tmp_path / "seven.pth")
    fails(run("utils/convert_checkpoint.py", tmp_path / "seven.pth", *logs), "7 classes")
    fails(run("utils/convert_checkpoint.py", *logs), "no file")
    path = tmp_path / "deeplabv3_r101-d16-mg124_512x1024_80k_cityscapes.pth"
    torch.save(weights, path)
    fails(run("utils/convert_checkpoint.py", path, *logs), path.name, "Multi-Grid")
