"""The dilated ResNet: explicit strides and dilations, torchvision's features and keys."""

import pytest
import torch
import torchvision
from helpers import randomize
from torchvision.models._utils import IntermediateLayerGetter

from model.encoders import build_encoder
from model.resnet import PLAIN as NAMES
from model.resnet import ResNet

# (stride, dilation, padding) of the 3x3 convolutions, block by block, of layer2, layer3, layer4.
# BasicBlock has two per block, Bottleneck one.
PLAIN, STRIDED, D2, D4 = (1, 1, 1), (2, 1, 1), (1, 2, 2), (1, 4, 4)
TABLE = {
    ("resnet18", 8, (1, 1, 1)): ([STRIDED, *[PLAIN] * 3], [D2] * 4, [D4] * 4),
    ("resnet18", 16, (1, 1, 1)): ([STRIDED, *[PLAIN] * 3], [STRIDED, *[PLAIN] * 3], [D2] * 4),
    ("resnet18", 32, (1, 1, 1)): ([STRIDED, *[PLAIN] * 3],) * 3,
    ("resnet50", 8, (1, 1, 1)): ([STRIDED, *[PLAIN] * 3], [PLAIN, *[D2] * 5], [D2, D4, D4]),
    ("resnet50", 16, (1, 1, 1)): (
        [STRIDED, *[PLAIN] * 3],
        [STRIDED, *[PLAIN] * 5],
        [PLAIN, D2, D2],
    ),
    ("resnet50", 16, (1, 2, 4)): (
        [STRIDED, *[PLAIN] * 3],
        [STRIDED, *[PLAIN] * 5],
        [D2, D4, (1, 8, 8)],
    ),
    ("resnet50", 8, (1, 2, 4)): (
        [STRIDED, *[PLAIN] * 3],
        [PLAIN, *[D2] * 5],
        [D4, (1, 8, 8), (1, 16, 16)],
    ),
    ("resnet101", 16, (1, 2, 4)): (
        [STRIDED, *[PLAIN] * 3],
        [STRIDED, *[PLAIN] * 22],
        [D2, D4, (1, 8, 8)],
    ),
    ("resnet101", 8, (1, 1, 1)): ([STRIDED, *[PLAIN] * 3], [PLAIN, *[D2] * 22], [D2, D4, D4]),
    ("resnet101", 16, (1, 1, 1)): (
        [STRIDED, *[PLAIN] * 3],
        [STRIDED, *[PLAIN] * 22],
        [PLAIN, D2, D2],
    ),
}


def three_by_threes(layer: torch.nn.Module) -> list[tuple[int, int, int]]:
    convs = [m for m in layer.modules() if isinstance(m, torch.nn.Conv2d)]
    return [(c.stride[0], c.dilation[0], c.padding[0]) for c in convs if c.kernel_size == (3, 3)]


@pytest.mark.parametrize("name, stride, grid", TABLE)
def test_strides_and_dilations_follow_the_table(name, stride, grid):
    backbone = ResNet(name, output_stride=stride, multi_grid=grid)
    layers = (backbone.layer2, backbone.layer3, backbone.layer4)
    for layer, expected in zip(layers, TABLE[name, stride, grid], strict=True):
        assert three_by_threes(layer) == expected
    shortcuts = [backbone.layer2[0], backbone.layer3[0], backbone.layer4[0]]
    strides = [block.downsample[0].stride[0] for block in shortcuts]
    assert strides == [2 if reached <= stride else 1 for reached in (8, 16, 32)]


def test_conv1_only_dilates_the_first_convolution_of_a_basic_block():
    backbone = ResNet("resnet18", output_stride=8, contract="conv1_only")
    assert three_by_threes(backbone.layer3) == [PLAIN, PLAIN, D2, PLAIN]
    assert three_by_threes(backbone.layer4) == [D2, PLAIN, D4, PLAIN]


@pytest.mark.parametrize("stride, replace", [(8, [0, 1, 1]), (16, [0, 0, 1]), (32, [0, 0, 0])])
@pytest.mark.parametrize("name", ["resnet50", "resnet101"])
def test_features_equal_torchvision(name, stride, replace):
    build = getattr(torchvision.models, name)
    reference = build(replace_stride_with_dilation=[bool(x) for x in replace]).eval()
    randomize(reference)
    layers = {f"layer{i}": str(i) for i in (1, 2, 3, 4)}
    images = torch.randn(1, 3, 65, 97, generator=torch.Generator().manual_seed(1))
    outputs = {}
    with torch.no_grad():
        expected = list(IntermediateLayerGetter(reference, layers)(images).values())
        for contract in (True, False):
            backbone = ResNet(
                name, output_stride=stride, contract=contract, weights=reference.state_dict()
            ).eval()
            outputs[contract] = backbone(images)
    for ours, theirs in zip(outputs[True], expected, strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    if stride < 32:  # the other convention must be told apart
        assert (outputs[False][-1] - expected[-1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_imagenet_weights_fill_every_stage(name):
    source = getattr(torchvision.models, name)(weights=None)
    randomize(source)
    backbone = ResNet(name, output_stride=8, weights=source.state_dict())
    ours, theirs = backbone.state_dict(), source.state_dict()
    assert set(theirs) - set(ours) == {"fc.weight", "fc.bias"}
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (1, 1)])
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_features_have_the_stride(stride, size):
    *_, c5 = ResNet("resnet18", output_stride=stride).eval()(torch.zeros(1, 3, *size))
    assert c5.shape == (1, 512, *(-(-length // stride) for length in size))


@pytest.mark.parametrize(
    "options", [{"name": "resnet19"}, {"name": "resnet18", "output_stride": 4}]
)
def test_unknown_backbone_or_stride_is_refused(options):
    with pytest.raises(ValueError, match="one of: resnet18, resnet34|8, 16 or 32"):
        build_encoder(**options)


@pytest.mark.parametrize("name, stride", [("resnet50c", 8), ("resnet50c", 32), ("resnet50d", 32)])
@torch.no_grad()
def test_variants_are_timm_s(name, stride):
    """Where a stride becomes a dilation, timm goes on to average beside the block; mmsegmentation,
    PaddleSeg and this project do not."""
    timm = pytest.importorskip("timm")
    how = {"stem_width": 32, "stem_type": "deep", "avg_down": name.endswith("d")}
    theirs = timm.models.resnet.ResNet(
        timm.models.resnet.Bottleneck, [3, 4, 6, 3], output_stride=stride, **how
    ).eval()
    randomize(theirs)
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    expected = theirs.forward_features(images)
    own, other = (build_encoder(kind, output_stride=stride).eval() for kind in (name, "resnet50"))
    own.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")})
    features = own(images)[-1]
    assert (features - expected).abs().max() <= 1e-5 * expected.std()
    shared = {k: v for k, v in own.state_dict().items() if k in other.state_dict()}
    shapes = {k: v.shape for k, v in other.state_dict().items()}
    other.load_state_dict({k: v for k, v in shared.items() if v.shape == shapes[k]}, strict=False)
    assert (other(images)[-1] - expected).abs().max() > 1e-3 * expected.std()
