"""Convolutions with fewer products against PyTorch's own in float64."""

import numpy as np
import pytest
import torch
from helpers import randomize
from torch import nn

from evaluation.inference import Predictor
from model import build_model
from model.normalize import normalize
from model.ops import winograd
from model.ops.winograd import WinogradConv


@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 6), (5, 7), (33, 20)])
def test_it_is_the_convolution(size, bands, monkeypatch):
    rows, columns = ((length + 1) // 2 for length in size)
    conv = nn.Conv2d(64, 24, 3, padding=1, bias=bands == 1)
    monkeypatch.setattr(winograd, "BAND", 16 * 2 * columns * 64 * -(-rows // bands))
    x = torch.randn(2, 64, *size).to(memory_format=torch.channels_last)
    exact = conv.double()(x.double()).detach()
    found = WinogradConv(conv.float())(x)
    assert found.shape == exact.shape
    assert (found - exact).abs().max() <= 1e-5 * exact.std()


@pytest.mark.parametrize(
    "name, cpu", [("fcn", "AVX2"), ("pspnet", "AVX2"), ("psanet", "AVX2"), ("fcn", "AVX512")]
)
def test_a_prediction_on_a_cpu_is_that_of_the_network(name, cpu, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: cpu)
    model = build_model(name, num_classes=5, backbone="resnet50").eval()
    randomize(model)
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    predictor = Predictor(model, device=torch.device("cpu"))
    counts = [
        sum(isinstance(x, WinogradConv) for x in n.modules()) for n in (predictor.model, model)
    ]
    assert counts == [cpu == "AVX2", 0]
    narrow = [x for x in predictor.model.modules() if getattr(x, "kernel_size", 0) == (1, 1)]
    assert {x.dilation for x in narrow} == {(2, 2) if cpu == "AVX512" else (1, 1)}
    found = predictor.logits(image, size=(70, 90))
    with torch.no_grad():
        expected = model(normalize(torch.tensor(image)[None]))["out"]
    assert (found - expected).abs().max() <= 1e-4 * expected.std()
