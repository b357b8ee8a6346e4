"""VGG-16 and the architectures on it: SegNet, DeconvNet, FCN-32s to 8s."""

import numpy as np
import pytest
import torch
import torchvision
from helpers import randomize
from torch import nn
from torch.nn import functional as F

from evaluation.inference import Predictor
from model import build_model
from model.encoders import build_encoder
from utils.base.environment import keep_memory
from utils.base.errors import UserError
from utils.training.config import Config
from utils.training.network import network_options

MILLIONS = {"fcn32s": 134.34, "fcn16s": 134.35, "fcn8s": 134.35, "segnet": 29.45}
MILLIONS |= {"deconvnet": 251.79}
ENDS = {"vgg16": (4, 9, 16, 23, 30), "vgg16_bn": (6, 13, 23, 33, 43)}  # the poolings


@pytest.mark.parametrize("name", MILLIONS)
def test_it_has_the_known_number_of_parameters(name):
    with torch.device("meta"):
        model = build_model(name, num_classes=19)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(
        MILLIONS[name], abs=0.006
    )


@pytest.mark.parametrize("name", ENDS)
@torch.no_grad()
def test_features_are_torchvision_s_after_each_pooling(name):
    theirs = torchvision.models.get_model(name, weights=None).eval()
    randomize(theirs)
    ours = build_encoder(name, weights=theirs.state_dict()).eval()
    images = torch.randn(1, 3, 64, 97, generator=torch.Generator().manual_seed(1))
    for features, end in zip(ours(images), ENDS[name], strict=True):
        assert torch.equal(features, theirs.features[: end + 1](images))


def conv(x: torch.Tensor, layers: nn.Sequential, place: int) -> torch.Tensor:
    """Convolution (transposed or not), BatchNorm and ReLU, by torch's functions."""
    layer, norm = layers[place], layers[place + 1]
    if isinstance(layer, nn.ConvTranspose2d):
        x = F.conv_transpose2d(x, layer.weight, padding=layer.kernel_size[0] // 2 % 3)
    else:
        x = F.conv2d(x, layer.weight, layer.bias, padding=layer.kernel_size[0] // 2 % 3)
    return F.relu(F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias))


def encoded(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, list]:
    """VGG-16 with BatchNorm: convolutions 2, 2, 3, 3, 3, each stage with a pooling."""
    place, poolings = 0, []
    for number in (2, 2, 3, 3, 3):
        for _ in range(number):
            x = conv(x, model.backbone.features, place)
            place += 3
        size = x.shape[2:]
        x, indices = F.max_pool2d(x, 2, return_indices=True)
        poolings.append((indices, size))
        place += 1
    return x, poolings


def decoded(x: torch.Tensor, poolings: list, model: nn.Module, numbers: tuple, *, keep: bool):
    """The mirrored stages; keep: unpool to the maxima, else (the control) to the first places."""
    for stage, number, (indices, size) in zip(model.decoder, numbers, poolings[::-1], strict=True):
        if not keep:
            _, indices = F.max_pool2d(torch.zeros(*x.shape[:2], *size), 2, return_indices=True)
        x = F.max_unpool2d(x, indices, 2, output_size=size)
        for place in range(number):
            x = conv(x, stage, 3 * place)
    return x


@torch.no_grad()
def test_segnet_is_figure_2_of_the_paper():
    model = build_model("segnet", num_classes=5).eval()
    randomize(model)
    images = torch.randn(2, 3, 70, 99, generator=torch.Generator().manual_seed(1))
    logits = model(images)["out"]
    found = []
    for keep in (True, False):
        x = decoded(*encoded(model, images), model, (3, 3, 3, 2, 1), keep=keep)
        found.append(F.conv2d(x, model.classifier.weight, model.classifier.bias, padding=1))
    assert (logits - found[0]).abs().max() <= 1e-5 * logits.std()
    assert (logits - found[1]).abs().max() > 1e-3 * logits.std()


@pytest.mark.slow
@torch.no_grad()
def test_deconvnet_is_table_2_of_the_paper():
    model = build_model("deconvnet", num_classes=5).eval()
    randomize(model)
    images = torch.randn(1, 3, 224, 231, generator=torch.Generator().manual_seed(1))
    logits = model(images)["out"]
    found = []
    for keep in (True, False):
        x, poolings = encoded(model, images)
        for place in (0, 3):
            layer, norm = model.lines[place], model.lines[place + 1]
            x = F.conv2d(x, layer.weight)
            x = F.relu(F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias))
        layer, norm = model.lines[6], model.lines[7]
        x = F.conv_transpose2d(x, layer.weight)
        x = F.relu(F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias))
        x = decoded(x, poolings, model, (3, 3, 3, 2, 2), keep=keep)
        found.append(F.conv2d(x, model.classifier.weight, model.classifier.bias))
    assert (logits - found[0]).abs().max() <= 1e-5 * logits.std()
    assert (logits - found[1]).abs().max() > 1e-3 * logits.std()


@pytest.mark.slow
@pytest.mark.parametrize("name, skips", [("fcn32s", 0), ("fcn16s", 1), ("fcn8s", 2)])
@torch.no_grad()
def test_fcn_adds_the_scores_of_finer_poolings(name, skips):
    model = build_model(name, num_classes=5).eval()
    randomize(model)
    images = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    features = model.backbone(images)
    lines = model.classifier
    x = F.relu(F.conv2d(features[4], lines[0].weight, lines[0].bias, padding=3))
    x = F.relu(F.conv2d(x, lines[3].weight, lines[3].bias))
    scores = [F.conv2d(x, lines[6].weight, lines[6].bias)]
    for number, score in enumerate(model.scores):
        scores.append(F.conv2d(features[3 - number], score.weight, score.bias))
    total = scores[0]
    for finer in scores[1:]:
        total = finer + F.interpolate(total, scale_factor=2, mode="bilinear")
    assert len(scores) == 1 + skips
    logits = model(images)["out"]
    assert (logits - total).abs().max() <= 1e-5 * logits.std()


def test_an_encoder_of_another_architecture_is_one_line_and_the_default_fits():
    options = {"backbone_weights": None, "crop": (256, 256)}
    assert network_options(Config(model="segnet", **options), 5)["backbone"] == "vgg16_bn"
    assert network_options(Config(model="fcn8s", **options), 5)["backbone"] == "vgg16"
    words = "--backbone resnet50: not an encoder of segnet. Give one of vgg16_bn"
    with pytest.raises(UserError, match=words):
        network_options(Config(model="segnet", backbone="resnet50", **options), 5)
    with pytest.raises(UserError, match="--backbone vgg16: not an encoder of deeplabv3"):
        network_options(Config(backbone="vgg16", **options), 5)


@pytest.mark.slow
def test_the_gradient_of_fc6_in_bf16_does_not_depend_on_what_memory_held():
    """oneDNN left it uninitialized for maps of less than 4x4."""
    keep_memory()
    model = build_model("fcn32s", num_classes=5).train()
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    found = []
    for junk in (0.0, float("nan")):
        held = [torch.full((size,), junk) for size in (10**8, 5 * 10**7, 10**7, 10**6) * 2]
        del held  # its memory is used again
        model.zero_grad()
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(images)["out"]
        logits.float().square().mean().backward()
        found.append(model.classifier[0].weight.grad.clone())
    assert found[0].isfinite().all() and torch.equal(*found)


def test_crops_and_images_that_are_too_small_are_one_line():
    words = "--crop must be at least 224 high and wide for deconvnet"
    with pytest.raises(UserError, match=words):
        network_options(Config(model="deconvnet", crop=(128, 256), backbone_weights=None), 5)
    model, photo = build_model("segnet", num_classes=5), np.zeros((40, 50, 3), np.uint8)
    for how in ({"scales": (0.5,)}, {"crop": (20, 40)}):
        predictor = Predictor(model, device=torch.device("cpu"), **how)
        with pytest.raises(UserError, match="an image of 40x50: 20 pixels for the network, which"):
            predictor.train_ids(photo)
    whole = Predictor(model, device=torch.device("cpu"))
    assert whole.train_ids(photo).shape == (40, 50)
