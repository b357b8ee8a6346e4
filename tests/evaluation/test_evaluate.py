"""Evaluation against plain definitions: counts, loss, memory, what it reads."""

import tracemalloc

import numpy as np
import pytest
import torch
from helpers import ALONE, randomize, write_cityscapes
from torch.nn import functional as F

from datasets import build_dataset
from evaluation import semantic
from evaluation.bootstrap import ImageCounts
from evaluation.counts import Counts, count_pixels
from evaluation.evaluate import evaluate
from evaluation.semantic import Counted
from model import build_model
from model.normalize import normalize
from utils.data.label_table import CITYSCAPES, IGNORE


def network() -> torch.nn.Module:
    model = build_model("deeplabv3", num_classes=19, output_stride=16)
    randomize(model)
    return model.eval()


def test_evaluate_counts_every_pixel_once_and_reports_the_loss(cityscapes_root):
    dataset, model = build_dataset("cityscapes", cityscapes_root, "val"), network()
    weights = torch.rand(19) + 0.5
    seen = {}

    def keep(sample, counts, train_ids):
        seen[sample["name"]] = counts, train_ids, sample["image"]

    scores = evaluate(model, dataset, world=ALONE, class_weights=weights, workers=2, on_image=keep)
    assert scores.counts.confusion.sum() == 3 * 64 * 128
    total = Counts.total(counts for counts, *_ in seen.values())
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
        _, train_ids, image = seen[sample["name"]]
        assert np.array_equal(train_ids, logits[-1].argmax(1)[0].numpy())
        assert np.array_equal(image, sample["image"])
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
        dataset.names = [x.name for x in dataset.files]
        tracemalloc.start()
        evaluate(Constant(), dataset, world=ALONE, workers=2)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 20 * 3 * 256 * 512 / 4


def test_counts_of_pixels_do_not_grow_with_the_number_of_images():
    rng, counted, every = np.random.default_rng(0), Counted(CITYSCAPES), []
    for index in range(3):
        ids = rng.integers(0, 34, (2, 8, 8), np.uint8)
        every.append(count_pixels(ids[0].astype(np.uint16), ids[1], CITYSCAPES, border=1))
        counted.add(index, every[-1])
    assert not any(x.confusion.size or x.border.size for x in counted.images.values())
    total, expected = semantic.total(counted, CITYSCAPES, ALONE), Counts.total(every)
    for name, value in vars(expected).items():
        assert np.array_equal(getattr(total, name), value)


def test_image_counts_give_the_score_s_miou(cityscapes_root):
    dataset = build_dataset("cityscapes", cityscapes_root, "val")
    parts = []
    model = build_model("deeplabv3", num_classes=19, output_stride=32)
    scores = evaluate(
        model, dataset, world=ALONE, on_image=lambda _, counts, __: parts.append(counts.confusion)
    )
    assert float(
        ImageCounts.joined([ImageCounts.of(x, dataset.classes) for x in parts]).miou()
    ) == pytest.approx(scores.miou)
