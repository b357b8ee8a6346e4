"""Calibration error and IoU by object size, against plain definitions."""

from io import BytesIO

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from evaluation import semantic
from evaluation.calibration import Calibration, plot_reliability
from evaluation.metrics import compute_scores
from evaluation.object_size import count_by_size
from model.ops.upsample_confidence import upsample_confidence
from utils.data.label_table import CITYSCAPES, IGNORE, VOC


def test_confidence_is_that_of_the_upsampled_logits():
    logits = 3 * torch.randn(1, 19, 9, 17, generator=torch.Generator().manual_seed(0))
    for size in ((72, 136), (65, 129), (9, 17)):
        full = F.interpolate(logits, size, mode="bilinear").softmax(1).amax(1)
        torch.testing.assert_close(upsample_confidence(logits, size), full)


def test_the_errors_are_those_of_a_plain_reference_over_15_bins():
    noise, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    calibration, seen = Calibration(), []
    for _ in range(3):
        logits = 2 * torch.randn(1, 5, 8, 16, generator=noise)
        label = rng.choice([0, 1, 2, 3, 4, IGNORE], (64, 128)).astype(np.uint8)
        full = F.interpolate(logits, (64, 128), mode="bilinear")[0].softmax(0)
        confidence, predicted = full.max(0)
        calibration.add({"label": label}, logits)
        known = label != IGNORE
        seen.append((confidence.numpy()[known], predicted.numpy()[known], label[known]))
    confidence, predicted, truth = (np.concatenate(part) for part in zip(*seen, strict=True))

    def reference(chosen: np.ndarray) -> float:
        total = 0.0
        for number in range(15):
            inside = chosen & (confidence > number / 15) & (confidence <= (number + 1) / 15)
            if inside.any():
                accuracy = (predicted == truth)[inside].mean()
                total += inside.sum() * abs(accuracy - confidence[inside].mean())
        return total / chosen.sum()

    assert calibration.error() == pytest.approx(reference(predicted >= 0), abs=1e-6)
    for number in range(5):
        expected = reference(predicted == number)
        assert calibration.error(number) == pytest.approx(expected, abs=1e-6)
    assert np.isnan(Calibration().error()) and calibration.error() > 0.1


@pytest.mark.parametrize("sharpness", [1.0, 2.0])
def test_a_calibrated_network_has_error_0_and_an_overconfident_one_the_known_error(sharpness):
    """Right in 75 % of its pixels, with logits for 75 %, then with twice these logits."""
    label = np.zeros((40, 100), np.uint8)
    label[:10] = 1  # a quarter is wrong
    logits = torch.zeros(1, 2, 5, 10)
    logits[:, 0] = sharpness * np.log(3)  # e^log(3) / (1 + e^log(3)) = 0.75
    calibration = Calibration()
    calibration.add({"label": label}, logits)
    claimed = 3**sharpness / (1 + 3**sharpness)  # 0.75, 0.9
    assert calibration.error() == pytest.approx(claimed - 0.75, abs=1e-6)
    picture = BytesIO()
    plot_reliability(calibration, picture)
    assert cv2.imdecode(np.frombuffer(picture.getvalue(), np.uint8), 1).shape[1] > 500


@pytest.mark.parametrize("classes", [CITYSCAPES, VOC], ids=["instances", "regions"])
def test_the_sizes_of_objects_add_up_to_the_class(classes):
    rng = np.random.default_rng(0)

    def scene() -> np.ndarray:
        """(300,400) ids with objects of all sizes; Cityscapes: instance ids."""
        ids = np.full((300, 400), int(classes.ids[0]), np.uint16)
        for number, side in enumerate((200, 120, 80, 60, 40, 20, 10, 5) * 3):
            top, left = (int(rng.integers(0, length - side // 2)) for length in ids.shape)
            one = int(rng.choice(classes.ids[-8:]))
            numbered = 1000 * one + number if classes.instance_sizes else one
            ids[top : top + side, left : left + side] = numbered
        return ids

    def to_train(ids: np.ndarray) -> np.ndarray:
        return classes.id_to_train[np.where(ids > 255, ids // 1000, ids)].astype(np.uint8)

    total, counts = 0, []
    for _ in range(3):
        truth, predicted = scene(), to_train(scene())
        label = to_train(truth)
        label[:20] = IGNORE
        truth[:20] = 0 if classes.instance_sizes else 255  # unlabelled
        sample = {"label": label, "name": "scene"}
        if classes.instance_sizes:
            sample["instance"] = truth
        total = total + count_by_size(sample, predicted, classes)
        counts.append(semantic.count(sample, predicted, classes))
    scores = compute_scores(type(counts[0]).total(counts), classes)
    hits, union, objects = np.moveaxis(total.sum(1), 1, 0)
    things = objects > 0
    assert things.sum() >= 8 and (total[things][:, :, 2] > 0).mean() > 0.8
    expected = np.array([*scores.classes.values()])[things]
    np.testing.assert_allclose(hits[things] / union[things], expected, rtol=1e-12)


def test_a_wrong_region_belongs_to_the_object_it_covers_most():
    label = np.zeros((200, 300), np.uint8)
    label[10:20, 10:20] = 1  # small: found, with a margin around it
    label[50:150, 50:150] = 1  # large: missed
    predicted = np.zeros_like(label)
    predicted[5:25, 5:25] = 1
    predicted[60:100, 200:240] = 1  # of medium size, covers nothing
    counts = count_by_size({"label": label}, predicted, VOC)
    assert counts[1].tolist() == [[100, 400, 1], [0, 1600, 0], [0, 10_000, 1]]


def test_a_network_that_predicts_void_is_wrong_there():
    """fregu856's has an output more than Cityscapes has classes."""
    calibration, logits = Calibration(), torch.zeros(1, 3, 2, 2)
    logits[:, 2] = 5.0
    calibration.add({"label": np.zeros((16, 16), np.uint8)}, logits)
    assert calibration.error() == pytest.approx(float(logits.softmax(1).max()), abs=1e-6)
