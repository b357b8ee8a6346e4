"""Gradients of weights as matrix products against PyTorch's own in float64."""

import copy

import pytest
import torch
from torch import nn

from model import build_model
from model.layers import WSConv2d
from model.losses import SegmentationLoss
from model.ops.matrix_gradients import use_matrix_gradients


@pytest.mark.parametrize("kind", [nn.Conv2d, WSConv2d])
@pytest.mark.parametrize(("size", "d"), [((1, 1), 1), ((5, 7), 1), ((6, 3), 2), ((9, 20), 12)])
def test_all_gradients_are_those_of_the_convolution(size, d, kind):
    conv = kind(64, 24, 3, padding=d, dilation=d)
    exact = copy.deepcopy(conv).double()
    use_matrix_gradients(conv)
    assert "_conv_forward" in vars(conv)
    x = torch.randn(2, 64, *size).to(memory_format=torch.channels_last)
    inputs = [x.clone().requires_grad_(), x.double().requires_grad_()]
    outputs = [layer(given) for layer, given in zip((conv, exact), inputs, strict=True)]
    for output in outputs:
        output.square().sum().backward()
    found, expected = (
        [given.grad, layer.weight.grad, layer.bias.grad]
        for layer, given in zip((conv, exact), inputs, strict=True)
    )
    for own, other in zip(found, expected, strict=True):
        assert (own - other).abs().max() <= 1e-5 * other.abs().max()


def test_frozen_weights_and_images_get_no_gradient():
    conv = nn.Conv2d(64, 8, 3, padding=1, bias=False)
    use_matrix_gradients(conv)
    x = torch.randn(1, 64, 6, 6)
    conv(x).sum().backward()
    assert x.grad is None
    conv.weight.grad = None
    conv.requires_grad_(False)
    conv(x.requires_grad_()).sum().backward()
    assert conv.weight.grad is None
    assert x.grad is not None


@pytest.mark.parametrize("name", ["deeplabv3", "deeplabv3plus", "pspnet", "fpn"])
def test_a_step_is_that_of_the_network(name):
    torch.manual_seed(0)
    model = build_model(name, num_classes=5, backbone="resnet18").to(
        memory_format=torch.channels_last
    )
    other = copy.deepcopy(model)
    use_matrix_gradients(other)
    used = sum("_conv_forward" in vars(module) for module in other.modules())
    assert used >= 12, "of ResNet-18 alone"
    images = torch.randn(2, 3, 96, 128)
    truth = {"label": torch.randint(0, 5, (2, 96, 128), dtype=torch.uint8)}
    losses = []
    for network in (model, other):
        torch.manual_seed(1)  # dropout
        loss_sum, _ = SegmentationLoss()(network(images), truth)
        loss_sum.backward()
        losses.append(loss_sum.item())
    assert losses[0] == losses[1]
    for (key, mine), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        if mine.grad is not None:
            error = (mine.grad - theirs.grad).abs().max()
            assert error <= 1e-3 * mine.grad.abs().max(), key
