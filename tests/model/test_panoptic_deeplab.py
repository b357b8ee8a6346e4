"""Panoptic-DeepLab against its layer list, and its loss against the formulas."""

import pytest
import torch
from helpers import randomize
from torch import nn
from torch.nn import functional as F

from model import build_model
from model.losses import PanopticDeepLabLoss

K = 19
ENCODERS = {  # parameters, channels of the stages
    "resnet18": (11_176_512, (64, 128, 256, 512)),
    "resnet50": (23_508_032, (256, 512, 1024, 2048)),
    "resnet101": (42_500_160, (256, 512, 1024, 2048)),
}
PUBLISHED = {("resnet50", 32): 55_308_870, ("resnet101", 32): 74_300_998}
PUBLISHED |= {("resnet50", 16): 54_972_678}


def conv(inputs: int, outputs: int, kernel: int) -> int:
    """Parameters of a convolution without bias, and of its BatchNorm."""
    return inputs * outputs * kernel**2 + 2 * outputs


def separable(inputs: int, outputs: int) -> int:
    return 25 * inputs + 2 * inputs + conv(inputs, outputs, 1)


def decoder(channels: tuple, skips: tuple, width: int) -> int:
    last = channels[-1]
    aspp = conv(last, 256, 1) + 3 * conv(last, 256, 3) + last * 256 + conv(5 * 256, 256, 1)
    inputs, total = 256, aspp
    for skip, stage in zip(skips, reversed(channels[: len(skips)]), strict=True):
        total += conv(stage, skip, 1) + separable(inputs + skip, width)
        inputs = width
    return total


@pytest.mark.parametrize("backbone", ENCODERS)
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_its_parameters_follow_from_the_layers(backbone, output_stride):
    encoder, channels = ENCODERS[backbone]
    levels = 3 if output_stride == 32 else 2
    expected = encoder + decoder(channels, (128, 64, 32)[-levels:], 256)
    expected += decoder(channels, (64, 32, 16)[-levels:], 128)
    expected += separable(256, 256) + 257 * K + 2 * separable(128, 32) + 33 + 66
    with torch.device("meta"):
        how = {"num_classes": K, "backbone": backbone, "output_stride": output_stride}
        model = build_model("panoptic_deeplab", **how)
    assert sum(p.numel() for p in model.parameters()) == expected
    assert PUBLISHED.get((backbone, output_stride), expected) == expected


class Weights:
    """Layers that take the weights of a network one after the other."""

    def __init__(self, model: nn.Module) -> None:
        leaves = [module for module in model.modules() if not [*module.children()]]
        self.convs = iter(x for x in leaves if isinstance(x, nn.Conv2d))
        self.norms = iter(x for x in leaves if isinstance(x, nn.BatchNorm2d))

    def conv(self, x, *, norm=True, dilation=1, groups=1):
        own = next(self.convs)
        padding = dilation * (own.kernel_size[0] // 2)
        x = F.conv2d(x, own.weight, own.bias, 1, padding, dilation, groups)
        if not norm:
            return x
        own = next(self.norms)
        how = (own.running_mean, own.running_var, own.weight, own.bias)
        return F.batch_norm(x, *how, eps=1e-5).relu()

    def separable(self, x):
        return self.conv(self.conv(x, groups=x.shape[1]))


def restated(model, images, rates, wrong=False):
    """Cheng et al., section 3.1 and figure 2, with the authors' widths for ResNet-50."""
    features, maps = model.backbone(images), []
    for part in (model.semantic_decoder, model.instance_decoder):
        layers, last = Weights(part), features[-1]
        branches = [layers.conv(last), *(layers.conv(last, dilation=rate) for rate in rates)]
        pooled = layers.conv(last.mean((2, 3), keepdim=True), norm=False).relu()
        branches.append(pooled.expand_as(branches[0]))
        x = layers.conv(torch.cat(branches, 1))
        stages = features[1::-1] if rates[0] > 3 else features[2::-1]
        # modules() lists all projections before the first fusion.
        skips = [layers.conv(stage) for stage in stages]
        for skip in skips:
            x = F.interpolate(x, skip.shape[2:], mode="nearest" if wrong else "bilinear")
            x = layers.separable(torch.cat([x, skip], 1))
        maps.append(x)
    heads = ((model.classifier, maps[0]), (model.center, maps[1]), (model.offset, maps[1]))
    found = []
    for head, x in heads:
        layers = Weights(head)
        found.append(layers.conv(layers.separable(x), norm=False))
    wide = F.pad(found[1], (1, 1, 1, 1), value=-torch.inf).unfold(2, 3, 1).unfold(3, 3, 1)
    found[1] = torch.where(found[1] == wide.amax((4, 5)), found[1], 0.0)
    return found


@pytest.mark.parametrize("output_stride, rates", [(32, (3, 6, 9)), (16, (6, 12, 18))])
@torch.no_grad()
def test_its_maps_are_those_of_the_layer_list(output_stride, rates):
    how = {"num_classes": 5, "backbone": "resnet18", "output_stride": output_stride}
    model = build_model("panoptic_deeplab", **how).eval()
    randomize(model)
    images = torch.randn(2, 3, 161, 225)
    found = model(images)
    assert [*found] == ["out", "center", "offset"]
    expected, wrong = (restated(model, images, rates, wrong=x) for x in (False, True))
    for ours, theirs, other in zip(found.values(), expected, wrong, strict=True):
        assert ours.shape == theirs.shape == (2, ours.shape[1], 41, 57)
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.std()
        assert (other - theirs).abs().max() > 1e-3 * theirs.std()


def example() -> tuple[dict, dict]:
    """Outputs at stride 4 and targets of two crops, the second without things."""
    generator = torch.Generator().manual_seed(0)
    how = {"generator": generator, "dtype": torch.float64}
    channels = {"out": 4, "center": 1, "offset": 2}
    outputs = {name: torch.randn(2, n, 6, 8, **how) for name, n in channels.items()}
    labels = torch.randint(0, 4, (2, 24, 32), generator=generator).byte()
    region = torch.randint(0, 4, (2, 24, 32), generator=generator).byte()
    region[1].clamp_(max=1)
    labels[0, :3] = 255
    targets = {"label": labels, "region": region, "heat": torch.rand(2, 24, 32, **how)}
    return outputs, targets | {"offset": 9 * torch.randn(2, 2, 24, 32, **how)}


def test_the_hardest_pixel_is_at_least_one():
    loss_sum, _ = PanopticDeepLabLoss(hardest=1e-4)(*example())
    assert loss_sum.isfinite()


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 2, 3, 6], dtype=torch.float64)])
def test_its_loss_is_the_formula(weights):
    outputs, targets = example()
    loss_sum, weight_sum = PanopticDeepLabLoss(class_weights=weights)(outputs, targets)
    full = {name: F.interpolate(x, (24, 32), mode="bilinear") for name, x in outputs.items()}
    losses = []
    for image in range(2):
        label, region = targets["label"][image].long(), targets["region"][image]
        entropy = F.cross_entropy(full["out"], targets["label"].long(), None, ignore_index=255,
                                  reduction="none")[image]  # fmt: skip
        weighted = entropy * torch.where(region == 3, 3.0, 1.0)
        number = int(0.2 * 24 * 32)
        hardest = weighted.flatten().argsort(descending=True)[:number]
        share = torch.ones(4) if weights is None else weights / 3
        semantic = (weighted * share[label.clamp(max=3)]).flatten()[hardest].sum() / number
        heat = (full["center"][image, 0] - targets["heat"][image]).square()[region > 0].mean()
        error = (4 * full["offset"][image] - targets["offset"][image]).abs().mean(0)
        offset = error[region > 1].mean() if (region > 1).any() else 0
        losses.append(semantic + 200 * heat + 0.01 * offset)
    assert weight_sum == 2 * 24 * 32
    assert (loss_sum / weight_sum).item() == pytest.approx(float(sum(losses)) / 2, rel=1e-6)


def test_micro_batches_and_processes_add_up():
    outputs, targets = example()
    whole = PanopticDeepLabLoss()(outputs, targets)
    parts = [
        PanopticDeepLabLoss()(
            *({k: x[i : i + 1] for k, x in y.items()} for y in (outputs, targets))
        )
        for i in range(2)
    ]
    for index in range(2):
        torch.testing.assert_close(whole[index], parts[0][index] + parts[1][index])


def test_a_crop_without_anything_has_a_finite_gradient():
    outputs, targets = example()
    targets["label"].fill_(255), targets["region"].fill_(0)
    outputs = {name: x.requires_grad_() for name, x in outputs.items()}
    loss_sum, _ = PanopticDeepLabLoss()(outputs, targets)
    loss_sum.backward()
    assert loss_sum == 0 and not any(x.grad.any() for x in outputs.values())
