"""Deformable convolution on the CPU against torchvision's."""

import pytest
import torch
from torchvision.ops import deform_conv2d

from model.ops.deform_conv import deform_conv


@pytest.mark.parametrize("stride, padding, dilation", [(1, 1, 1), (2, 1, 1), (1, 2, 2), (1, 0, 1)])
def test_it_and_its_gradients_are_those_of_torchvision(stride, padding, dilation):
    torch.manual_seed(0)
    how = {"stride": stride, "padding": padding, "dilation": dilation}
    weight, bias = torch.randn(6, 5, 3, 3).requires_grad_(), torch.randn(6).requires_grad_()
    x = torch.randn(2, 5, 13, 18).contiguous(memory_format=torch.channels_last).requires_grad_()
    size = torch.nn.functional.conv2d(x, weight, **how).shape[-2:]
    offset = (3 * torch.randn(2, 18, *size)).requires_grad_()
    tensors, results = (x, offset, weight, bias), []
    for function in (deform_conv, deform_conv2d):
        found = function(*tensors, **how)
        upstream = torch.linspace(-1, 1, found.numel()).view(found.shape)
        results.append([found, *torch.autograd.grad(found, tensors, upstream)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.std().item())
    without = deform_conv(x, torch.zeros_like(offset), weight, bias, **how)
    usual = torch.nn.functional.conv2d(x, weight, bias, **how)
    torch.testing.assert_close(without, usual, rtol=1e-4, atol=1e-4)
    assert (without - results[0][0]).abs().max() > 1  # the offsets matter
