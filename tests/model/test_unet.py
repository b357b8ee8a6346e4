"""U-Net against the paper's figure 1, restated layer by layer."""

import torch
from helpers import randomize
from torch import nn
from torch.nn import functional as F

from model import build_model


def test_it_has_the_parameters_of_the_common_form():
    model = build_model("unet", num_classes=19)
    assert sum(p.numel() for p in model.parameters()) == 31_038_803
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert len(convolutions) == 23  # section 2: "In total the network has 23 convolutional layers"


def restated(model: nn.Module, images: torch.Tensor, *, order=(0, 1)) -> torch.Tensor:
    """Figure 1, for sizes that four poolings divide; `order` of skip and upsampled features."""

    def twice(block: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
        for conv, norm in ((block[0], block[1]), (block[3], block[4])):
            x = F.conv2d(x, conv.weight, padding=1)
            x = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)
            x = F.relu(x)
        return x

    one = twice(model.down[0], images)
    two = twice(model.down[1], F.max_pool2d(one, 2))
    four = twice(model.down[2], F.max_pool2d(two, 2))
    eight = twice(model.down[3], F.max_pool2d(four, 2))
    x = twice(model.down[4], F.max_pool2d(eight, 2))
    for stage, skip in ((3, eight), (2, four), (1, two), (0, one)):
        up = model.up[stage]
        wide = F.conv_transpose2d(x, up.weight, up.bias, stride=2)
        x = twice(model.merge[stage], torch.cat([(skip, wide)[i] for i in order], 1))
    return F.conv2d(x, model.classifier.weight, model.classifier.bias)


def test_its_logits_are_those_of_the_figure():
    model = build_model("unet", num_classes=5).eval()
    randomize(model)
    images = torch.randn(2, 3, 48, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = model(images)["out"]
        assert torch.allclose(logits, restated(model, images), atol=1e-5 * float(logits.std()))
        other = restated(model, images, order=(1, 0))  # the control: another concatenation
    assert (logits - other).abs().max() > 1e-3 * logits.std()


def test_odd_sizes_keep_theirs_and_even_ones_see_no_padding():
    model = build_model("unet", num_classes=5).eval()
    for size in ((16, 16), (33, 50), (47, 31)):
        assert model(torch.zeros(1, 3, *size))["out"].shape[2:] == size
