"""Prediction and evaluation against plain definitions; pictures in the right colours."""

import copy
import tracemalloc

import cv2
import numpy as np
import pytest
import torch
from conftest import randomize, write_cityscapes
from PIL import Image
from torch.nn import functional as F

from datasets import build_dataset
from evaluation.counts import Counts
from evaluation.evaluate import evaluate
from evaluation.inference import Predictor, inference_copy, predict, predict_logits, rescale
from evaluation.visualize import ContactSheet, error_map, overlay, save_png
from model import build_model
from utils.distributed import World
from utils.labels import CITYSCAPES, IGNORE
from utils.transforms import normalize

ALONE = World(rank=0, size=1, device=torch.device("cpu"))


def network() -> torch.nn.Module:
    model = build_model("deeplabv3", num_classes=19, output_stride=16)
    randomize(model)
    return model.eval()


def images(size=(64, 96)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 3, 6, 9, generator=generator)
    return (F.interpolate(coarse, size, mode="bilinear") * 255).byte().permute(0, 2, 3, 1)


def test_predict_is_upsampled_argmax_at_any_size():
    model, pictures = network(), images()
    with torch.no_grad():
        logits = model(normalize(pictures))["out"]
    for size in ((64, 96), (128, 192), (50, 70)):
        full = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        labels = predict(model, pictures, size=size)
        assert labels.dtype == torch.uint8
        assert torch.equal(labels.long(), full.argmax(1))


def test_scales_and_flip_average_probabilities():
    model, pictures, size = network(), images(), (64, 96)
    views = []
    with torch.no_grad():
        for scale in (0.5, 1.0):
            scaled = rescale(normalize(pictures), scale)
            views += [model(scaled)["out"], model(scaled.flip(3))["out"].flip(3)]
    full = [F.interpolate(view, size, mode="bilinear").softmax(1) for view in views]
    expected = (sum(full) / 4).log()
    found = predict_logits(model, pictures, size=size, scales=(0.5, 1.0), flip=True)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


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
    found = predict_logits(model, pictures, size=(64, 96), crop=crop, stride=stride)
    torch.testing.assert_close(found, views[0], rtol=1e-5, atol=1e-5)
    both = (views[0].softmax(1) + views[1].flip(3).softmax(1)) / 2
    found = predict_logits(model, pictures, size=(64, 96), flip=True, crop=crop, stride=stride)
    torch.testing.assert_close(found, both.log(), rtol=1e-5, atol=1e-5)
    labels = predict(model, pictures, size=(64, 96), flip=True, crop=crop, stride=stride)
    assert torch.equal(labels.long(), both.argmax(1))


class SmallMemory(torch.nn.Module):
    """A network on a device that holds so many pixels at once."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.network, self.pixels = network(), pixels

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        if images[0, 0].numel() > self.pixels:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return self.network(images)


def test_an_image_larger_than_the_memory_is_predicted_in_windows(cityscapes_root, capsys):
    dataset = build_dataset("cityscapes", cityscapes_root, "val")
    model = SmallMemory(pixels=40 * 90)
    with pytest.raises(torch.OutOfMemoryError):
        evaluate(model, dataset, world=ALONE)  # already below the smallest window
    found = Predictor(model, device=ALONE.device)
    found.SMALLEST = 64
    pictures = images()[:1]
    for _ in range(2):
        logits = found.logits(pictures[0].numpy(), size=(64, 96))
    assert capsys.readouterr().err.count("warning: too little memory") == 1
    network = inference_copy(model.network)
    expected = predict_logits(network, pictures, size=(64, 96), crop=(32, 64))
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_the_inference_copy_predicts_the_same_and_leaves_the_model_alone(backbone):
    model = build_model("deeplabv3", num_classes=19, backbone=backbone, output_stride=16, aux=True)
    randomize(model)
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    copied, inputs = inference_copy(model), normalize(images())
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in copied.modules())
    with torch.no_grad():
        found, expected = copied(inputs)["out"], copy.deepcopy(model).eval()(inputs)["out"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (expected - expected.mean((2, 3), keepdim=True)).std() > 0.01
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_half_scale_prediction_still_has_full_size():
    assert predict(network(), images(), size=(64, 96), scales=(0.5,)).shape == (2, 64, 96)


def test_evaluate_counts_every_pixel_once_and_reports_the_loss(cityscapes_root):
    dataset, model = build_dataset("cityscapes", cityscapes_root, "val"), network()
    weights = torch.rand(19) + 0.5
    seen = {}
    scores = evaluate(
        model, dataset, world=ALONE, class_weights=weights, workers=2,
        on_image=lambda name, counts, labels: seen.update({name: (counts, labels)}),
    )  # fmt: skip
    assert scores.counts.confusion.sum() == 3 * 64 * 128
    total = Counts.total(counts for counts, _ in seen.values())
    assert np.array_equal(total.confusion, scores.counts.confusion)
    assert np.array_equal(total.instances, scores.counts.instances)
    assert len(total.instances) > 3
    logits, labels = [], []
    for index in range(3):
        sample = dataset[index]
        with torch.no_grad():
            out = model(normalize(torch.from_numpy(sample["image"])[None]))["out"]
        logits.append(F.interpolate(out, (64, 128), mode="bilinear"))
        labels.append(torch.from_numpy(sample["label"])[None].long())
        assert np.array_equal(seen[sample["name"]][1], logits[-1].argmax(1)[0].numpy())
    expected = F.cross_entropy(
        torch.cat(logits), torch.cat(labels), weight=weights, ignore_index=IGNORE
    )
    assert abs(scores.loss / expected.item() - 1) < 1e-5


def test_memory_for_pixels_does_not_grow_with_the_number_of_images(tmp_path):
    """Arrays of numpy and OpenCV, the only ones that evaluation keeps across images."""
    dataset = build_dataset(
        "cityscapes", write_cityscapes(tmp_path, val=40, size=(256, 512)), "val"
    )

    class Constant(torch.nn.Module):
        def forward(self, images):
            return {"out": images.new_zeros(len(images), 19, 8, 16)}

    peaks, files = [], dataset.files
    for number in (20, 40):  # more than are held at once
        dataset.files = files[:number]
        tracemalloc.start()
        evaluate(Constant(), dataset, world=ALONE, workers=2)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 20 * 3 * 256 * 512 / 4


def test_pictures_have_palette_colours_in_rgb_order(tmp_path):
    labels = np.full((4, 6), 11, np.uint8)  # person: (220, 20, 60)
    save_png(tmp_path / "p.png", CITYSCAPES.draw(labels))
    assert np.asarray(Image.open(tmp_path / "p.png"))[0, 0].tolist() == [220, 20, 60]
    mixed = overlay(np.zeros((4, 6, 3), np.uint8), labels, CITYSCAPES)
    assert mixed[0, 0].tolist() == [143, 13, 39]


def test_error_map_marks_wrong_right_and_ignored():
    truth, labels = np.array([[0, 1, IGNORE]], np.uint8), np.array([[0, 2, 3]], np.uint8)
    colors = error_map(truth, labels)[0].tolist()
    assert colors == [[255, 255, 255], [220, 30, 30], [0, 0, 0]]


def test_a_contact_sheet_shows_images_spread_over_the_set(cityscapes_root, tmp_path):
    dataset = build_dataset("cityscapes", cityscapes_root, "val")
    sheet = ContactSheet(dataset, images=2)
    for index in reversed(range(len(dataset))):  # threads finish in any order
        sheet.add(dataset.files[index].name, None, dataset[index]["label"])
    sheet.save(tmp_path / "samples" / "sheet.png")
    picture = cv2.imread(str(tmp_path / "samples" / "sheet.png"))
    assert picture.shape[1] == 4 * 480 and len(sheet.rows) == 2
    first = sheet.rows[dataset.names[0]]
    truth, prediction = first[:, 480:960], first[:, 960:1440]
    assert np.array_equal(picture[36:][: len(first), :, ::-1], first)
    inside = prediction.any(2) & truth.any(2)
    assert np.array_equal(truth[inside], prediction[inside])
