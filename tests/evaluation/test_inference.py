"""Prediction against plain definitions: scales, mirrors, windows, memory, the folded copy."""

import copy

import cv2
import numpy as np
import pytest
import torch
from helpers import ALONE, randomize
from torch.nn import functional as F

from benchmarks.measure import extra_mib
from datasets import build_dataset
from evaluation.evaluate import evaluate
from evaluation.inference import Predictor, inference_copy, predict_logits, rescale
from model import build_model
from model.normalize import normalize
from model.ops.upsample_argmax import upsample_argmax
from model.ops.upsample_cross_entropy import upsample_cross_entropy
from utils.base.errors import UserError
from utils.data.image_files import read_image


def network() -> torch.nn.Module:
    model = build_model("deeplabv3", num_classes=19, output_stride=16)
    randomize(model)
    return model.eval()


def images(size=(64, 96)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 3, 6, 9, generator=generator)
    return (F.interpolate(coarse, size, mode="bilinear") * 255).byte().permute(0, 2, 3, 1)


def test_a_prediction_is_the_upsampled_argmax_at_any_size():
    model, pictures = network(), images()
    predictor = Predictor(model, device=ALONE.device)
    with torch.no_grad():
        logits = model(normalize(pictures))["out"]
    for size in ((64, 96), (128, 192), (50, 70)):
        full = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        train_ids = upsample_argmax(predict_logits(model, pictures, size=size), size)
        assert torch.equal(train_ids.long(), full.argmax(1))
        one = predictor.train_ids(pictures[0].numpy(), size=size)  # of the folded copy: other bits
        assert one.dtype == np.uint8 and (one == train_ids[0].numpy()).mean() > 0.999


def test_scales_and_flip_average_probabilities():
    model, pictures, size = network(), images(), (64, 96)
    views = []
    with torch.no_grad():
        for scale in (0.5, 1.0):
            scaled = rescale(normalize(pictures), scale)
            views += [model(scaled)["out"], model(scaled.flip(3))["out"].flip(3)]
    full = [F.interpolate(view, size, mode="bilinear").softmax(1) for view in views]
    expected = (sum(full) / 4).log()
    logits = predict_logits(model, pictures, size=size, scales=(0.5, 1.0), flip=True)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("crop, stride", [((48, 64), (32, 40)), ((40, 200), None)])
def test_windows_average_their_logits(crop, stride):
    """Each window's upsampled logits in a frame of zeros; sums divided by how often seen."""
    model, pictures = network(), images()
    views = []
    with torch.no_grad():
        for seen in (normalize(pictures), normalize(pictures).flip(3)):
            sums, count = torch.zeros(2, 19, 64, 96), torch.zeros(64, 96)
            high, wide = min(crop[0], 64), min(crop[1], 96)
            down, right = stride or (27, 64)
            for top in range(0, 64, down):
                for left in range(0, 96, right):
                    bottom, end = min(top + high, 64), min(left + wide, 96)
                    window = seen[:, :, bottom - high : bottom, end - wide : end]
                    full = F.interpolate(model(window)["out"], (high, wide), mode="bilinear")
                    around = (end - wide, 96 - end, bottom - high, 64 - bottom)
                    sums += F.pad(full, around)
                    count += F.pad(torch.ones(high, wide), around)
                    if end == 96:
                        break
                if bottom == 64:
                    break
            views.append(sums / count)
    logits = predict_logits(model, pictures, size=(64, 96), crop=crop, stride=stride)
    torch.testing.assert_close(logits, views[0], rtol=1e-5, atol=1e-5)
    both = (views[0].softmax(1) + views[1].flip(3).softmax(1)) / 2
    logits = predict_logits(model, pictures, size=(64, 96), flip=True, crop=crop, stride=stride)
    torch.testing.assert_close(logits, both.log(), rtol=1e-5, atol=1e-5)
    assert torch.equal(upsample_argmax(logits, (64, 96)).long(), both.argmax(1))


def test_a_half_scale_prediction_still_has_full_size():
    predictor = Predictor(network(), device=ALONE.device, scales=(0.5,))
    assert predictor.train_ids(images()[0].numpy()).shape == (64, 96)


class SmallMemory(torch.nn.Module):
    """A network on a device that holds so many pixels at once."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.network, self.pixels = network(), pixels

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        if images[0, 0].numel() > self.pixels:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return self.network(images)


def test_an_image_larger_than_the_memory_is_predicted_in_windows_where_wanted(monkeypatch, capsys):
    monkeypatch.setattr(Predictor, "SMALLEST", 64)
    model = SmallMemory(pixels=40 * 90)
    predictor = Predictor(model, device=ALONE.device, windows_if_needed=True)
    pictures = images()[:1]
    for _ in range(2):
        logits = predictor.logits(pictures[0].numpy(), size=(64, 96))
    printed = capsys.readouterr().err
    assert printed.count("warning: too little memory for an image of 64x96 at once") == 1
    assert "predicted in windows of 32x64: results differ slightly" in printed
    inner = inference_copy(model.network)
    expected = predict_logits(inner, pictures, size=(64, 96), crop=(32, 64))
    assert torch.equal(logits, expected)
    train_ids = predictor.train_ids(pictures[0].numpy())
    assert np.array_equal(train_ids, expected.argmax(1)[0].numpy())
    tiny = Predictor(SmallMemory(pixels=0), device=ALONE.device, windows_if_needed=True)
    with pytest.raises(UserError, match="out of memory with an image of 64x96, predicted 32x64 at"):
        tiny.logits(pictures[0].numpy(), size=(64, 96))


def test_one_image_too_large_for_the_memory_does_not_change_smaller_ones(monkeypatch):
    monkeypatch.setattr(Predictor, "SMALLEST", 64)
    model = SmallMemory(pixels=40 * 90)
    predictor = Predictor(model, device=ALONE.device, windows_if_needed=True)
    large, small = images()[0].numpy(), images((36, 90))[0].numpy()
    before = predictor.logits(small, size=small.shape[:2])
    predictor.logits(large, size=large.shape[:2])
    assert torch.equal(predictor.logits(small, size=small.shape[:2]), before)


class Windows(torch.nn.Module):
    """A network that needs 32 pixels a side."""

    smallest_image = 32

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        assert min(images.shape[2:]) >= 32
        return {"out": F.avg_pool2d(images, 8)}


def test_the_smallest_side_is_that_of_the_window_in_the_scaled_image():
    image = images()[0].numpy()  # 64x96

    def predict(**options: object) -> None:
        Predictor(Windows(), device=ALONE.device, **options).train_ids(image)

    predict(crop=(32, 32), scales=(0.5,))
    predict(crop=(40, 40), scales=(0.5, 2.0))
    words = "an image of 64x96: {} pixels for the network, which needs 32"
    for pixels, options in ((31, {"crop": (31, 64), "scales": (2.0,)}), (26, {"scales": (0.4,)})):
        with pytest.raises(UserError, match=words.format(pixels)):
            predict(**options)


def test_windows_never_shrink_below_what_the_network_takes():
    model = SmallMemory(pixels=200 * 200)
    model.smallest_image = 224
    predictor = Predictor(model, device=ALONE.device, windows_if_needed=True)
    image = images((300, 400))[0].numpy()
    with pytest.raises(
        UserError, match="out of memory with an image of 300x400, predicted 300x400"
    ):
        predictor.train_ids(image)


def test_a_score_never_changes_its_protocol_for_want_of_memory(
    cityscapes_root, monkeypatch, capsys
):
    """One line that names the option, where windows would have been possible."""
    monkeypatch.setattr(Predictor, "SMALLEST", 64)
    dataset = build_dataset("cityscapes", cityscapes_root, "val")
    model, image = SmallMemory(pixels=40 * 90), dataset.image(0)
    words = "out of memory with an image of 64x128, predicted 64x128 at once.* --crop .* --scales"
    predictor = Predictor(model, device=ALONE.device)
    for work in (
        lambda: evaluate(model, dataset, world=ALONE),
        lambda: predictor.train_ids(image),
        lambda: predictor.train_ids(image),  # nor the second time
    ):
        with pytest.raises(UserError, match=words) as error:
            work()
        assert "\n" not in str(error.value)
    assert "warning" not in capsys.readouterr().err
    in_windows = evaluate(model, dataset, world=ALONE, crop=(32, 64))  # what the line advises
    assert in_windows.counts.confusion.sum() == 3 * 64 * 128


class Means(torch.nn.Module):
    """Colours as classes: the mean of 8x8 pixels, or of 24x24."""

    def __init__(self, border: int = 0) -> None:
        super().__init__()
        self.border = border

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        border = self.border
        return {"out": F.avg_pool2d(F.pad(images, (border,) * 4), 8 + 2 * border, 8)}


@pytest.mark.parametrize("size", [(152, 240), (64, 400), (40, 304)])
def test_an_image_beyond_the_limit_is_predicted_in_tiles(monkeypatch, capsys, size):
    """Where a tile's margin is wider than what the network sees, as in one piece."""
    image = images(size)[0].numpy()
    whole = Predictor(Means(border=8), device=ALONE.device).train_ids(image)
    monkeypatch.setattr(Predictor, "MOST", 4096)
    monkeypatch.setattr(Predictor, "TILE", 64)
    predictor = Predictor(Means(border=8), device=ALONE.device, windows_if_needed=True)
    differ = {}
    for margin in (16, 0):
        monkeypatch.setattr(Predictor, "MARGIN", margin)
        differ[margin] = (predictor.train_ids(image) != whole).mean()
    assert differ[16] == 0 < differ[0]
    monkeypatch.setattr(Predictor, "MARGIN", 16)
    both = predictor.with_confidence(image)
    assert (both[..., 0] == whole).all()
    logits = Means(border=8)(normalize(torch.tensor(image)[None]))["out"]
    expected = 255 * F.interpolate(logits, size, mode="bilinear").softmax(1).amax(1)[0]
    assert np.abs(both[..., 1] - expected.numpy()).max() < 0.51
    small = predictor.train_ids(image, size=(20, 30))
    assert small.shape == (20, 30) and "predicted in tiles of 64x64" in capsys.readouterr().err
    with pytest.raises(UserError, match=f"{size[0]}x{size[1]}: too large .* at most 4,096 pixels"):
        Predictor(Means(border=8), device=ALONE.device).train_ids(image)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_a_hundred_million_pixels_are_predicted_in_bounded_memory(tmp_path, ending):
    path = tmp_path / f"large.{ending}"
    coarse = np.random.default_rng(0).integers(0, 256, (100, 101, 3), np.uint8)
    cv2.imwrite(str(path), cv2.resize(coarse, (10_100, 10_000), interpolation=cv2.INTER_NEAREST))
    predictor = Predictor(Means(), device=ALONE.device, windows_if_needed=True)
    image = read_image(path)
    train_ids = []
    assert extra_mib(lambda: train_ids.append(predictor.train_ids(image))) < 1024
    expected = normalize(torch.tensor(coarse[..., ::-1].copy())[None])[0].argmax(0).numpy()
    assert (train_ids[0][50::100, 50::100] == expected).mean() > 0.95


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_the_inference_copy_predicts_the_same_and_leaves_the_model_alone(backbone):
    model = build_model("deeplabv3", num_classes=19, backbone=backbone, output_stride=16, aux=True)
    randomize(model)
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    copied, inputs = inference_copy(model), normalize(images())
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in copied.modules())
    with torch.no_grad():
        logits, expected = copied(inputs)["out"], copy.deepcopy(model).eval()(inputs)["out"]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert (expected - expected.mean((2, 3), keepdim=True)).std() > 0.01
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.slow
def test_predicting_a_whole_image_takes_the_memory_of_the_network_alone():
    model = build_model("deeplabv3", num_classes=19, output_stride=16)
    predictor = Predictor(model, device=torch.device("cpu"))
    image = np.random.default_rng(0).integers(0, 256, (512, 1024, 3), np.uint8)
    inputs = torch.zeros(1, 3, 512, 1024).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def forward() -> None:
        predictor.model(inputs)

    both = (forward, lambda: predictor.train_ids(image))
    for work in both:
        work()
    # The allocator keeps pages now and then, which only adds: the least of a few is the work's.
    alone, all_of_it = (min(extra_mib(work) for _ in range(4)) for work in both)
    assert alone > 20
    assert all_of_it <= 1.3 * alone, (all_of_it, alone)


@pytest.mark.parametrize("norm", ["bn", "gn_ws"])
def test_weights_rounded_once_predict_what_autocast_does(norm):
    model = build_model("deeplabv3", num_classes=5, output_stride=16, norm=norm).eval()
    randomize(model)
    plain, rounded = inference_copy(model), inference_copy(model, torch.bfloat16)
    assert rounded.backbone.conv1.weight.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        expected, found = (network(normalize(images()))["out"] for network in (plain, rounded))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("options", [{"flip": True}, {"scales": (0.5, 1.0)}])
def test_logits_far_apart_leave_a_finite_loss(options):
    """Probabilities of float32 end at logits 103 apart."""

    class Sure(torch.nn.Module):
        def forward(self, images):
            logits = torch.zeros(len(images), 3, *images.shape[2:])
            logits[:, 1] = 300
            return {"out": logits}

    logits = predict_logits(Sure(), images((32, 48)), size=(32, 48), **options)
    assert logits.isfinite().all() and (logits.argmax(1) == 1).all()
    truth = torch.zeros(len(logits), 32, 48, dtype=torch.uint8)
    loss_sum, weight_sum = upsample_cross_entropy(logits, truth, label_smoothing=0.1)
    assert 50 < loss_sum / weight_sum < 110
