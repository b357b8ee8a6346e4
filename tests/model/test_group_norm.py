"""GroupNorm and Weight Standardization against their formulas, in training and from weights."""

import pytest
import torch
from helpers import randomize, tiny, train
from torch import nn
from torch.nn import functional as F

from evaluation.inference import inference_copy
from evaluation.trained import load_model
from model import build_model
from model.layers import WSConv2d, set_norm
from utils.base.errors import UserError
from utils.training.config import Config
from utils.training.network import load_backbone_weights, network_options


def by_hand(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """chenxi116's, joe-siyuan-qiao's: means one after the other, deviation of N - 1, plus 1e-5."""
    weight = conv.weight
    mean = weight.mean(1, keepdim=True).mean(2, keepdim=True).mean(3, keepdim=True)
    weight = weight - mean
    deviation = weight.view(weight.size(0), -1).std(dim=1).view(-1, 1, 1, 1) + 1e-5
    return F.conv2d(
        x, weight / deviation, None, conv.stride, conv.padding, conv.dilation, conv.groups
    )


def test_weights_are_standardized_by_the_formula():
    conv = WSConv2d(6, 4, 3, stride=2, padding=2, dilation=2, bias=False).double()
    x = torch.randn(2, 6, 9, 11, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(conv(x), by_hand(conv, x), rtol=1e-12, atol=1e-12)
    biased = conv.standardized() * (53 / 54) ** 0.5  # a negative control: deviation of N
    assert (biased - conv.standardized()).abs().max() > 1e-3
    assert torch.autograd.gradcheck(conv, x[:1, :, :5, :5].detach().requires_grad_())


class Restated(nn.Module):
    """The network's forward pass with every convolution and norm as the sources write them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        for module in network.modules():
            if isinstance(module, WSConv2d):
                module.forward = lambda x, conv=module: by_hand(conv, x)
            if isinstance(module, nn.GroupNorm):
                module.forward = lambda x, norm=module: F.group_norm(x, 32, norm.weight, norm.bias)


@pytest.mark.parametrize("backbone", ["resnet18", "resnet101"])
def test_every_convolution_but_classifiers_is_standardized(backbone):
    model = build_model("deeplabv3", num_classes=21, backbone=backbone, norm="gn_ws", aux=True)
    plain = [n for n, m in model.named_modules() if type(m) is nn.Conv2d]
    assert plain == ["classifier.4", "aux_classifier.4"]
    assert not [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(m.num_groups == 32 for m in model.modules() if isinstance(m, nn.GroupNorm))
    bn = build_model("deeplabv3", num_classes=21, backbone=backbone, aux=True)
    names = [n for n, _ in bn.named_parameters()]
    assert names == [n for n, _ in model.named_parameters()]
    assert sum(p.numel() for p in bn.parameters()) == sum(p.numel() for p in model.parameters())
    if backbone == "resnet101":  # 104 convolutions and 2 x 104 of GroupNorm
        assert len(model.backbone.state_dict()) == 312


def test_the_inference_copy_standardizes_once_and_agrees():
    model = build_model("deeplabv3", num_classes=19, output_stride=16, norm="gn_ws")
    randomize(model)
    model = model.double().eval()
    images = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        copied = inference_copy(model)
        assert not [m for m in copied.modules() if isinstance(m, WSConv2d)]
        expected = Restated(model).network(images)["out"]
        found = copied(images)["out"]
    assert (found - expected).abs().max() <= 1e-10


def test_batches_of_one_take_steps_and_leave_a_network_of_their_norm(cityscapes_root, tmp_path):
    """That GN+WS learns so, tests/data/test_voc.py shows."""
    train(tiny(cityscapes_root, tmp_path, norm="gn", batch_size=1, steps=2, eval_every=2))
    model, state = load_model(tmp_path / "run" / "checkpoints" / "last.pth")
    assert state["network"]["norm"] == "gn" and not isinstance(model.backbone.conv1, WSConv2d)
    with pytest.raises(UserError, match="--batch_size must be at least 2 for deeplabv3"):
        network_options(Config(batch_size=1), 19)


def test_imagenet_weights_of_group_norm_are_read_and_others_refused(tmp_path):
    model = build_model("deeplabv3", num_classes=19, backbone="resnet101", norm="gn_ws")
    randomize(model)
    held = {f"module.{k}": v for k, v in model.backbone.state_dict().items()}
    held |= {"module.fc.weight": torch.zeros(1000, 2048), "module.fc.bias": torch.zeros(1000)}
    path = tmp_path / "R-101-GN-WS.pth.tar"
    torch.save({"epoch": 90, "arch": "resnet101", "state_dict": held}, path)
    weights = load_backbone_weights(str(path), "resnet101", norm="gn_ws")
    options = {"num_classes": 19, "backbone": "resnet101", "norm": "gn_ws"}
    loaded = build_model("deeplabv3", **options, backbone_weights=weights)
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(loaded.backbone.state_dict()[name], value)
    bn = tmp_path / "bn.pth"
    torch.save(build_model("deeplabv3", num_classes=2).backbone.state_dict(), bn)
    with pytest.raises(UserError, match="weights of BatchNorm"):
        load_backbone_weights(str(bn), "resnet18", norm="gn_ws")
    with pytest.raises(UserError, match=r"R-50-GN-WS\.pth\.tar: missing"):
        load_backbone_weights("imagenet", "resnet50", norm="gn_ws")
    with pytest.raises(UserError, match=r"no bn1\.running_mean"):
        load_backbone_weights(str(path), "resnet101")


def test_bn_leaves_a_network_alone():
    network = nn.Sequential(nn.Conv2d(3, 32, 1, bias=False), nn.BatchNorm2d(32))
    before = [type(module) for module in network]
    set_norm(network, "bn")
    assert [type(module) for module in network] == before
