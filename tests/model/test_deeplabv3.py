"""DeepLabV3 against torchvision's and segmentation_models_pytorch's, weight by weight."""

import pytest
import segmentation_models_pytorch as smp
import torch
import torchvision
from helpers import randomize
from torch.nn import functional as F

from model import MODELS, build_model
from model.deeplabv3 import ATROUS_RATES
from model.losses import SegmentationLoss
from utils.base.errors import UserError
from utils.training.config import Config
from utils.training.network import network_options, pretrained_weights

IMAGES = torch.randn(1, 3, 65, 97, generator=torch.Generator().manual_seed(1))
# Parameters in millions at 19 classes without auxiliary head.
PARAMETERS = {"resnet18": 15.903571, "resnet50": 39.638355, "resnet101": 58.630483}


@pytest.mark.parametrize("backbone, millions", PARAMETERS.items())
def test_parameter_counts(backbone, millions):
    model = build_model("deeplabv3", num_classes=19, backbone=backbone)
    assert sum(p.numel() for p in model.parameters()) == round(millions * 1e6)


@pytest.mark.parametrize("name", ["resnet50", "resnet101"])
def test_equals_torchvision_with_its_own_state_dict(name):
    reference = getattr(torchvision.models.segmentation, f"deeplabv3_{name}")(
        weights=None, weights_backbone=None, num_classes=19, aux_loss=True
    ).eval()
    randomize(reference)
    difference, aux_difference = {}, {}
    for contract in (None, False):
        model = build_model(
            "deeplabv3", num_classes=19, backbone=name, aux=True, contract=contract
        ).eval()
        model.load_state_dict(reference.state_dict())
        with torch.no_grad():
            expected = reference(IMAGES)
            logits = model(IMAGES)["out"]
            aux = model.aux_classifier(model.backbone(IMAGES)[2])
        full = F.interpolate(logits, IMAGES.shape[-2:], mode="bilinear", align_corners=False)
        aux = F.interpolate(aux, IMAGES.shape[-2:], mode="bilinear", align_corners=False)
        scale = expected["out"].std()
        difference[contract] = ((full - expected["out"]).abs().max() / scale).item()
        aux_difference[contract] = (aux - expected["aux"]).abs().max() / expected["aux"].std()
    assert difference[None] <= 1e-5
    assert aux_difference[None] <= 1e-5
    assert difference[False] > 1e-3


def smp_model(backbone: str, stride: int, *, rates: tuple[int, ...]) -> torch.nn.Module:
    """SMP's DeepLabV3 with dropout off and torchvision's convention of upsampling."""
    model = smp.DeepLabV3(
        backbone,
        encoder_weights=None,
        encoder_output_stride=stride,
        decoder_atrous_rates=rates,
        classes=19,
    )
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(module, torch.nn.Upsample):
            module.align_corners = False
    return model


def smp_to_ours(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """SMP's names -> ours."""
    names = {
        "encoder.": "backbone.",
        "decoder.aspp.": "classifier.0.",
        "decoder.conv.": "classifier.1.",
        "decoder.bn.": "classifier.2.",
        "segmentation_head.0.": "classifier.4.",
    }
    renamed = {}
    for key, value in state.items():
        prefix = next(prefix for prefix in names if key.startswith(prefix))
        renamed[names[prefix] + key.removeprefix(prefix)] = value
    return renamed


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_equals_smp(backbone, stride):
    reference = smp_model(backbone, stride, rates=ATROUS_RATES[stride]).eval()
    randomize(reference)
    difference = {}
    images = IMAGES[..., :64, :96]
    for contract in (False, True):
        model = build_model(
            "deeplabv3", num_classes=19, backbone=backbone, output_stride=stride, contract=contract
        ).eval()
        model.load_state_dict(smp_to_ours(reference.state_dict()))
        with torch.no_grad():
            expected = reference(images)
            logits = model(images)["out"]
        full = F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False)
        difference[contract] = ((full - expected).abs().max() / expected.std()).item()
    assert difference[False] <= 1e-5
    assert difference[True] > 1e-3


@pytest.mark.slow
def test_trains_like_smp():
    """The same weights, batches and optimizer: a textbook loop around SMP, and our criterion.

    In float64: in float32 SMP drifts by 2 % from itself when its weights change by 1e-7.
    """
    rates = (1, 2, 3)
    torch.manual_seed(0)
    reference = smp_model("resnet18", 16, rates=rates).double()
    model = build_model(
        "deeplabv3", num_classes=19, output_stride=16, dropout=0.0, atrous_rates=rates
    ).double()
    model.load_state_dict(smp_to_ours(reference.state_dict()))
    criterion, curves = SegmentationLoss(), ([], [])
    optimizers = [torch.optim.SGD(m.parameters(), 1e-2, momentum=0.9) for m in (reference, model)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(8):
        coarse = torch.randn(4, 3, 6, 6, generator=generator).double()
        images = F.interpolate(coarse, (32, 32), mode="bilinear")
        images += 0.5 * torch.randn(images.shape, generator=generator)
        labels = (images[:, 0] > 0).byte() + 2 * (images[:, 1] > 0).byte()
        labels[:, :4] = 255
        theirs = F.cross_entropy(reference(images), labels.long(), ignore_index=255)
        loss_sum, weight_sum = criterion(model(images), {"label": labels})
        ours = loss_sum / weight_sum
        for loss, optimizer, curve in zip((theirs, ours), optimizers, curves, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
    theirs, ours = (torch.tensor(curve, dtype=torch.float64) for curve in curves)
    assert theirs[-1] < 0.7 * theirs[0]  # it learned something to disagree about
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_every_parameter_gets_a_gradient_and_aux_only_in_training(stride):
    model = build_model("deeplabv3", num_classes=5, output_stride=stride, aux=True)
    outputs = model(torch.randn(2, 3, 65, 97))
    assert outputs["out"].shape == outputs["aux"].shape[:2] + outputs["out"].shape[2:]
    assert outputs["out"].shape == (2, 5, -(-65 // stride), -(-97 // stride))
    (outputs["out"].sum() + outputs["aux"].sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert set(model.eval()(torch.randn(1, 3, 64, 64))) == {"out"}


def test_atrous_rates_follow_the_output_stride():
    for stride, rates in {8: [12, 24, 36], 16: [6, 12, 18]}.items():
        model = build_model("deeplabv3", num_classes=2, output_stride=stride)
        convs = model.classifier[0].convs
        assert [convs[i][0].dilation[0] for i in (1, 2, 3)] == rates


def test_unknown_model_is_refused_with_the_names():
    with pytest.raises(ValueError, match="deeplabv3"):
        build_model("deeplab", num_classes=2)


@pytest.mark.parametrize(
    "options, dilations",
    [
        ({}, [4, 4]),
        ({"backbone": "resnet50", "output_stride": 16, "norm": "gn_ws", "aux": True}, [1, 2, 2]),
        ({"multi_grid": (1, 2, 4), "batch_size": 1, "norm": "gn"}, [4, 8]),
    ],
)
def test_options_of_a_training_make_the_network(options, dilations):
    network = network_options(Config(**options), 19)
    expected = {"name": "deeplabv3", "num_classes": 19, "backbone": "resnet18"}
    expected |= {"output_stride": 8, "norm": "bn", "multi_grid": [1, 1, 1], "aux": False}
    own = {key: list(x) if isinstance(x, tuple) else x for key, x in options.items()}
    own.pop("batch_size", None)
    assert network == expected | own
    with torch.device("meta"):
        model = build_model(**network)
    assert model.backbone.output_stride == network["output_stride"]
    assert (model.aux_classifier is not None) == network["aux"]
    grouped = [m for m in model.modules() if isinstance(m, torch.nn.GroupNorm)]
    assert bool(grouped) == (network["norm"] != "bn")
    assert [block.conv2.dilation[0] for block in model.backbone.layer4] == dilations


class WithoutOptions(torch.nn.Module):
    """An architecture that takes a number of classes only."""

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()


@pytest.mark.parametrize(
    "options, words",
    [
        ({"model": "deeplab"}, "--model deeplab: unknown architecture. Give one of deeplabv3"),
        ({"batch_size": 1}, "--batch_size must be at least 2 for deeplabv3.*--norm gn or gn_ws"),
        ({"model": "small", "aux": True}, "--aux: for deeplabv3, .*pspnet only. Leave it out"),
        (
            {"model": "small", "backbone": "resnet50"},
            "--backbone: for deeplabv3, .*panoptic_deeplab, upsnet only",
        ),
        ({"model": "small", "backbone_weights": "r18.pth"}, "--backbone_weights: for deeplabv3"),
        ({"model": "small", "multi_grid": (1, 2, 4)}, "--multi_grid: for deeplabv3, .*pspnet only"),
    ],
)
def test_options_that_an_architecture_does_not_take_are_refused(options, words, monkeypatch):
    monkeypatch.setitem(MODELS, "small", WithoutOptions)
    small = network_options(Config(model="small", batch_size=1, backbone_weights=None), 19)
    assert small == {"name": "small", "num_classes": 19}
    assert pretrained_weights(Config(model="small"), small) == {}
    with pytest.raises(UserError, match=words):
        network_options(Config(**options), 19)


def test_an_unknown_encoder_is_refused_with_the_names():
    config = Config(backbone="resnet19", backbone_weights=None)
    with pytest.raises(
        UserError,
        match="--backbone resnet19: not an encoder of deeplabv3. Give one of resnet18, res",
    ):
        pretrained_weights(config, network_options(config, 19))
