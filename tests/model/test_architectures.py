"""Architectures with a ResNet encoder against other implementations, or restated from the papers.

DeepLabV3 has its own file. All weights and statistics are random; a wrong variant must differ.
"""

import pytest
import segmentation_models_pytorch as smp
import torch
from helpers import randomize
from torch import nn
from torch.nn import functional as F
from torchvision.models import segmentation

from model import build_model
from model.psanet import relative
from model.pspnet import BINS, mean_matrix

K = 19
MILLIONS = {  # parameters of ResNet-18, 50 and 101 without auxiliary head, 19 classes
    "deeplabv3": (15.90, 39.64, 58.63),
    "deeplabv3plus": (16.02, 39.76, 58.75),
    "fcn": (11.77, 32.96, 51.95),
    "fpn": (13.05, 26.12, 45.11),
    "psanet": (21.05, 50.68, 69.68),
    "pspnet": (16.17, 46.59, 65.58),
}


def images(*size: int) -> torch.Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


def equal(ours: torch.Tensor, theirs: torch.Tensor, wrong: torch.Tensor) -> None:
    """Equal to 1e-5 of the deviation, unlike the negative control."""
    deviation = float(theirs.std())
    assert (ours - theirs).abs().max() <= 1e-5 * deviation
    assert (wrong - theirs).abs().max() > 1e-3 * deviation


@pytest.mark.parametrize("name", MILLIONS)
@pytest.mark.parametrize("number", range(3))
def test_it_has_the_known_number_of_parameters(name, number):
    backbone = ("resnet18", "resnet50", "resnet101")[number]
    with torch.device("meta"):
        model = build_model(name, num_classes=K, backbone=backbone)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    assert millions == pytest.approx(MILLIONS[name][number], abs=0.006)


@pytest.mark.parametrize("backbone", ["resnet50", "resnet101"])
@torch.no_grad()
def test_fcn_is_torchvision_s(backbone):
    make = getattr(segmentation, f"fcn_{backbone}")
    theirs = make(weights=None, weights_backbone=None, num_classes=5, aux_loss=True)
    randomize(theirs)
    ours, wrong = (
        build_model("fcn", num_classes=5, backbone=backbone, aux=True, contract=contract)
        for contract in (None, False)
    )
    for model in (ours, wrong):
        model.load_state_dict(theirs.state_dict())
    inputs = images(64, 96)
    features = [model.eval().backbone(inputs) for model in (ours, wrong)]
    expected = theirs.eval().backbone(inputs)
    for name, head, place in (("out", "classifier", 3), ("aux", "aux_classifier", 2)):
        logits = [
            getattr(model, head)(x[place]) for model, x in zip((ours, wrong), features, strict=True)
        ]
        equal(logits[0], getattr(theirs, head)(expected[name]), logits[1])


@torch.no_grad()
def test_fpn_is_smp_s():
    theirs = smp.FPN("resnet18", encoder_weights=None, classes=5).eval()
    randomize(theirs)
    weights = {f"backbone.{key}": value for key, value in theirs.encoder.state_dict().items()}
    decoder = theirs.decoder.state_dict()
    for level, part in enumerate(("", "p4.skip_conv", "p3.skip_conv", "p2.skip_conv")[::-1]):
        for kind in ("weight", "bias"):
            name = f"{part}.{kind}" if part else f"p5.{kind}"
            weights[f"lateral.{level}.{kind}"] = decoder[name]
    for branch in range(4):  # SMP's first branch is the coarsest
        for number in range(max(1, 3 - branch)):
            for kind in ("0.weight", "1.weight", "1.bias"):
                name = f"seg_blocks.{branch}.block.{number}.block.{kind}"
                weights[f"levels.{3 - branch}.{number}.{kind}"] = decoder[name]
    head = theirs.segmentation_head.state_dict()
    weights |= {f"classifier.1.{kind}": head[f"0.{kind}"] for kind in ("weight", "bias")}
    ours, wrong = (
        build_model("fpn", num_classes=5, align_corners=corners).eval() for corners in (True, False)
    )
    for model in (ours, wrong):
        model.load_state_dict(weights)
    inputs = images(64, 96)
    theirs.segmentation_head[1] = nn.Identity()  # the upsampling to full size
    equal(ours(inputs)["out"], theirs(inputs), wrong(inputs)["out"])


def conv(module: nn.Sequential, x: torch.Tensor, place: int = 0, **how: int) -> torch.Tensor:
    """Convolution, BatchNorm and ReLU at `place` of a sequence, by torch's functions."""
    weight, norm = module[place].weight, module[place + 1]
    x = F.conv2d(x, weight, **how)
    return F.relu(F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias))


def up(x: torch.Tensor, like: torch.Tensor, corners: bool = False) -> torch.Tensor:
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=corners)


@pytest.mark.parametrize("stride, rates", [(8, (12, 24, 36)), (16, (6, 12, 18))])
@torch.no_grad()
def test_deeplabv3plus_is_figure_2_of_the_paper(stride, rates):
    model = build_model("deeplabv3plus", num_classes=5, output_stride=stride).eval()
    randomize(model)
    inputs = images(64, 96)
    c2, _, _, c5 = model.backbone(inputs)

    def restated(low_first: bool) -> torch.Tensor:
        convs = model.aspp.convs
        branches = [conv(convs[0], c5)]
        branches += [
            conv(convs[1 + n], c5, padding=rate, dilation=rate) for n, rate in enumerate(rates)
        ]
        pooled = conv(convs[4], c5.mean((2, 3), keepdim=True), 1)
        branches.append(pooled.expand_as(branches[0]))
        wide = up(conv(model.aspp.project, torch.cat(branches, 1)), c2)
        both = [conv(model.low_level, c2), wide]
        mixed = torch.cat(both if low_first else both[::-1], 1)
        last = model.classifier[3]
        return F.conv2d(conv(model.classifier, mixed, padding=1), last.weight, last.bias)

    equal(model(inputs)["out"], restated(True), restated(False))


@torch.no_grad()
def test_a_separable_deeplabv3plus_has_its_convolutions_channel_by_channel():
    plain, separable = (
        build_model("deeplabv3plus", num_classes=K, separable=wanted) for wanted in (False, True)
    )
    wide = [m for m in plain.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    split = [m for m in separable.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    in_backbone = sum(
        c.kernel_size == (3, 3)
        for c in plain.backbone.modules()
        if hasattr(c, "kernel_size") and isinstance(c, nn.Conv2d)
    )
    assert len(split) == len(wide) - in_backbone == 4
    saved = sum(
        c.weight.numel() - (9 + c.out_channels) * c.in_channels - 2 * c.in_channels
        for c in wide[-4:]
    )
    parameters = [sum(p.numel() for p in m.parameters()) for m in (plain, separable)]
    assert parameters[0] - parameters[1] == saved


@pytest.mark.parametrize("corners", [False, True])
@torch.no_grad()
def test_pspnet_is_figure_3_of_the_paper(corners):
    model = build_model("pspnet", num_classes=5, align_corners=corners).eval()
    randomize(model)
    inputs = images(72, 104)
    c5 = model.backbone(inputs)[3]

    def restated(corners: bool) -> torch.Tensor:
        parts = [c5]
        for pool, bins in zip(model.classifier[0].pools, (1, 2, 3, 6), strict=True):
            rows = [span(c5.shape[2], bins, n) for n in range(bins)]
            columns = [span(c5.shape[3], bins, n) for n in range(bins)]
            means = [[c5[:, :, r, c].mean((2, 3)) for c in columns] for r in rows]
            regions = torch.stack([torch.stack(row, -1) for row in means], -2)
            parts.append(up(conv(pool, regions, 1), c5, corners))
        head, last = model.classifier[1:], model.classifier[5]
        return F.conv2d(conv(head, torch.cat(parts, 1), padding=1), last.weight, last.bias)

    equal(model(inputs)["out"], restated(corners), restated(not corners))


def span(length: int, parts: int, number: int) -> slice:
    """Pixels of a region: regions overlap where the length is not a multiple."""
    return slice(number * length // parts, -(-(number + 1) * length // parts))


def naive(logits: torch.Tensor, mask: tuple[int, int]) -> torch.Tensor:
    """`relative`, position by position and channel by channel."""
    count, _, height, width = logits.shape
    pairs = logits.new_zeros(count, height, width, height, width)
    for y in range(height):
        for x in range(width):
            for row in range(mask[0]):
                for column in range(mask[1]):
                    i, j = y + row - mask[0] // 2, x + column - mask[1] // 2
                    if 0 <= i < height and 0 <= j < width:
                        pairs[:, y, x, i, j] = logits[:, row * mask[1] + column, y, x]
    return pairs.flatten(3).flatten(1, 2)


SHAPES = [  # height and width of the map, of the mask: full, smaller, larger, mixed
    ((4, 5), (7, 9)), ((4, 5), (3, 5)), ((4, 5), (9, 11)), ((5, 5), (9, 9)),
    ((3, 7), (5, 3)), ((1, 4), (1, 7)), ((6, 2), (5, 5)),
]  # fmt: skip


@pytest.mark.parametrize("size, mask", SHAPES)
def test_relative_is_the_naive_loop(size, mask):
    noise = torch.Generator().manual_seed(0)
    logits = torch.randn(2, mask[0] * mask[1], *size, generator=noise, dtype=torch.float64)
    assert torch.equal(relative(logits, mask), naive(logits, mask))
    flipped = relative(logits.flip(1), mask)
    assert mask == (1, 1) or not torch.equal(flipped, naive(logits, mask))
    logits.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: relative(x, mask), logits[:1].detach().requires_grad_()
    )


@pytest.mark.parametrize("attention", ["both", "collect", "distribute"])
@torch.no_grad()
def test_psanet_is_its_formula(attention):
    options = {"num_classes": 5, "attention": attention, "mask": (5, 7)}
    model = build_model("psanet", **options).eval()
    randomize(model)
    inputs = images(72, 104)
    c5 = model.backbone(inputs)[3]
    kinds = ["collect", "distribute"] if attention == "both" else [attention]

    def restated(kinds: list[str]) -> torch.Tensor:
        parts = []
        for branch, kind in zip(model.branches, kinds, strict=True):
            small = [(length - 1) // 2 + 1 for length in c5.shape[2:]]
            x = F.interpolate(conv(branch.reduce, c5), small, mode="bilinear")
            logits = F.conv2d(conv(branch.attention, x), branch.attention[3].weight)
            pairs = naive(logits, (5, 7)).exp()
            out = torch.zeros_like(x).flatten(2)
            for p in range(out.shape[2]):
                for q in range(out.shape[2]):
                    if kind == "collect":  # p takes from q
                        share = pairs[:, p, q] / pairs[:, p].sum(1)
                        out[:, :, p] += share[:, None] * x.flatten(2)[:, :, q]
                    else:  # q is given by p
                        share = pairs[:, p, q] / pairs[:, :, q].sum(1)
                        out[:, :, q] += share[:, None] * x.flatten(2)[:, :, p]
            parts.append(out.view_as(x))
        wide = up(conv(model.project, torch.cat(parts, 1)), c5)
        mixed, last = torch.cat([c5, wide], 1), model.classifier[4]
        return F.conv2d(conv(model.classifier, mixed, padding=1), last.weight, last.bias)

    others = {"collect": "distribute", "distribute": "collect"}
    equal(model(inputs)["out"], restated(kinds), restated([others[kind] for kind in kinds]))


@pytest.mark.parametrize("length", [6, 8, 13, 50])
def test_exported_pyramids_pool_the_same_regions(length):
    x = torch.randn(2, 3, length, 17, generator=torch.Generator().manual_seed(0))
    for bins in BINS:
        means = mean_matrix(length, bins, x) @ x @ mean_matrix(17, bins, x).T
        assert torch.allclose(means, F.adaptive_avg_pool2d(x, bins), atol=1e-6)
