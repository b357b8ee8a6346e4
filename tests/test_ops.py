"""Upsampled argmax and cross entropy against their definitions."""

import pytest
import torch
from torch.nn import functional as F

from model.losses import SegmentationLoss
from model.ops.upsample_argmax import upsample_argmax
from model.ops.upsample_cross_entropy import upsample_cross_entropy

SIZES = [((3, 4), (24, 32)), ((4, 5), (31, 33)), ((23, 23), (360, 360)), ((1, 1), (7, 5))]


def logits_and_labels(small, large, classes=5):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, classes, *small, generator=generator)
    labels = torch.randint(0, classes, (2, *large), generator=generator).byte()
    labels[:, 0] = 255
    return logits, labels


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("small, large", SIZES)
def test_argmax_is_interpolate_then_argmax(small, large, align_corners):
    logits, _ = logits_and_labels(small, large)
    full = F.interpolate(logits, large, mode="bilinear", align_corners=align_corners)
    labels = upsample_argmax(logits, large, align_corners=align_corners)
    assert labels.dtype == torch.uint8
    assert torch.equal(labels.long(), full.argmax(1))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("small, large", SIZES)
def test_cross_entropy_sums_give_the_mean_of_torch(small, large, weighted):
    logits, labels = logits_and_labels(small, large)
    weights = torch.tensor([0.5, 1.0, 2.0, 3.0, 4.0]) if weighted else None
    loss_sum, weight_sum = upsample_cross_entropy(logits, labels, class_weights=weights)
    full = F.interpolate(logits, large, mode="bilinear")
    expected = F.cross_entropy(full, labels.long(), weight=weights, ignore_index=255)
    torch.testing.assert_close(loss_sum / weight_sum, expected)


def test_a_batch_without_labels_costs_nothing_and_has_a_finite_gradient():
    logits = torch.randn(1, 5, 4, 4, requires_grad=True)
    losses = SegmentationLoss()({"out": logits}, torch.full((1, 16, 16), 255, dtype=torch.uint8))
    losses["loss"].backward()
    assert losses["loss"] == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_the_auxiliary_loss_counts_0_4():
    logits, labels = logits_and_labels((3, 4), (24, 32))
    losses = SegmentationLoss()({"out": logits, "aux": 2 * logits}, labels)
    torch.testing.assert_close(losses["loss"], losses["out"] + 0.4 * losses["aux"])
    assert losses["aux"] != losses["out"]


def test_two_half_batches_add_up_to_the_whole():
    logits, labels = logits_and_labels((4, 5), (31, 33))
    labels[0, :20] = 255  # the halves have different numbers of labelled pixels
    whole = upsample_cross_entropy(logits, labels)
    halves = [upsample_cross_entropy(logits[i : i + 1], labels[i : i + 1]) for i in (0, 1)]
    for index in (0, 1):
        torch.testing.assert_close(whole[index], halves[0][index] + halves[1][index])
