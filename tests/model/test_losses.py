"""The losses beside cross entropy: each against its formula, pixel by pixel, in float64."""

import math

import pytest
import torch

from model.losses import SegmentationLoss, dice_loss, focal_cross_entropy, lovasz_softmax
from model.ops.upsample_cross_entropy import upsample_cross_entropy_reference

CLASSES = 4


def example(size=(6, 8)) -> tuple[torch.Tensor, torch.Tensor]:
    """(2,K,3,4) logits and (2,*size) labels with ignored pixels; class 3 does not occur."""
    noise = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, CLASSES, 3, 4, generator=noise)
    labels = torch.randint(0, CLASSES - 1, (2, *size), generator=noise, dtype=torch.uint8)
    labels[:, :2, :3] = 255
    return logits, labels


def cells(logits: torch.Tensor, labels: torch.Tensor) -> list[tuple[list[float], list[int]]]:
    """Probabilities of every cell, and its labels."""
    probabilities = logits.double().softmax(1)
    rows, columns = (full // small for full, small in zip((6, 8), (3, 4), strict=True))
    return [
        (
            probabilities[image, :, y, x].tolist(),
            labels[image, y * rows : (y + 1) * rows, x * columns : (x + 1) * columns]
            .flatten()
            .tolist(),
        )
        for image in range(2)
        for y in range(3)
        for x in range(4)
    ]


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 2, 3, 4])])
def test_focal_loss_is_its_formula(weights):
    logits, labels = example()
    full = torch.nn.functional.interpolate(logits, (6, 8), mode="bilinear").double().softmax(1)
    expected, total = 0.0, 0.0
    for image, y, x in (labels != 255).nonzero().tolist():
        own = int(labels[image, y, x])
        p, weight = full[image, own, y, x].item(), 1.0 if weights is None else float(weights[own])
        expected -= weight * (1 - p) ** 2 * math.log(p)
        total += weight
    found = focal_cross_entropy(logits, labels, gamma=2, class_weights=weights)
    assert [x.item() for x in found] == pytest.approx([expected, total], rel=1e-5)
    plain = upsample_cross_entropy_reference(logits, labels, class_weights=weights)
    without = focal_cross_entropy(logits, labels, gamma=0, class_weights=weights)
    assert without[0].item() == pytest.approx(plain[0].item(), rel=1e-6)
    assert found[0] < 0.95 * plain[0]


def test_dice_loss_is_its_formula():
    logits, labels = example()
    dice = []
    for number in range(CLASSES - 1):
        both = either = 0.0
        for probabilities, inside in cells(logits, labels):
            known = sum(label != 255 for label in inside) / len(inside)
            share = inside.count(number) / len(inside)
            both += known * probabilities[number] * share
            either += known * probabilities[number] + share
        dice.append(2 * both / either)
    assert dice_loss(logits, labels).item() == pytest.approx(1 - sum(dice) / 3, rel=1e-5)


def jaccard_losses(errors: list[float], truth: list[int]) -> float:
    """The Lovasz extension of the Jaccard loss by its definition: errors, largest first, times
    what each adds to the loss of the set of wrong pixels."""
    order = sorted(range(len(errors)), key=lambda i: -errors[i])
    total, wrong = 0.0, set()

    def loss(pixels: set[int]) -> float:  # of the pixels with a wrong class, equation 2 and 3
        found = {i for i, own in enumerate(truth) if own}
        return len(pixels) / len(found | pixels)

    for i in order:
        before = loss(wrong)
        wrong |= {i}
        total += errors[i] * (loss(wrong) - before)
    return total


def test_lovasz_softmax_is_the_extension_of_the_jaccard_loss():
    """The label of a cell is that of its pixel right below and right of the middle."""
    logits, labels = example()
    known = [(p, inside[3]) for p, inside in cells(logits, labels) if inside[3] != 255]
    losses = []
    for number in range(CLASSES - 1):
        truth = [int(label == number) for _, label in known]
        errors = [abs(t - p[number]) for t, (p, _) in zip(truth, known, strict=True)]
        losses.append(jaccard_losses(errors, truth))
    assert 0 < len(known) < 24
    assert lovasz_softmax(logits, labels).item() == pytest.approx(sum(losses) / 3, rel=1e-5)


@pytest.mark.parametrize("loss", [dice_loss, lovasz_softmax])
def test_losses_of_regions_are_0_where_all_is_right_and_differentiable(loss):
    logits, labels = example()
    labels[:] = labels[:, ::2, ::2].repeat_interleave(2, 1).repeat_interleave(2, 2)  # whole cells
    truth = labels[:, ::2, ::2].long()
    right = 40 * torch.nn.functional.one_hot(truth.where(truth < 255, 0), CLASSES).movedim(-1, 1)
    assert loss(right.float(), labels).item() == pytest.approx(0, abs=1e-5)
    logits.requires_grad_()
    loss(logits, labels).backward()
    assert logits.grad.isfinite().all() and logits.grad.abs().max() > 0
    ignored = torch.full_like(labels, 255)
    assert loss(logits, ignored).item() == 0


@pytest.mark.parametrize("name", ["dice", "lovasz"])
def test_losses_of_regions_are_added_to_the_mean_once(name):
    logits, labels = example()
    weights = torch.tensor([1.0, 2, 3, 4])
    plain, total = SegmentationLoss(class_weights=weights)({"out": logits}, {"label": labels})
    both = SegmentationLoss(class_weights=weights, **{name: 0.5})
    loss_sum, weight_sum = both({"out": logits, "aux": logits * 0}, {"label": labels})
    region = {"dice": dice_loss, "lovasz": lovasz_softmax}[name](logits, labels)
    aux = 0.4 * math.log(CLASSES)
    assert weight_sum == total
    assert (loss_sum / total).item() == pytest.approx(plain / total + aux + 0.5 * region)


def test_focal_loss_replaces_cross_entropy_in_both_heads():
    logits, labels = example()
    criterion = SegmentationLoss(focal=2.0)
    loss_sum, _ = criterion({"out": logits, "aux": logits}, {"label": labels})
    expected = 1.4 * focal_cross_entropy(logits, labels, gamma=2)[0]
    assert loss_sum.item() == pytest.approx(expected.item())


def test_class_weights_can_be_turned_off_and_on_again():
    logits, labels = example()
    criterion = SegmentationLoss(class_weights=torch.tensor([1.0, 2, 3, 4]))
    weighted = criterion({"out": logits}, {"label": labels})
    criterion.weigh(False)
    plain = criterion({"out": logits}, {"label": labels})
    assert torch.equal(plain[0], SegmentationLoss()({"out": logits}, {"label": labels})[0])
    criterion.weigh(True)
    again = criterion({"out": logits}, {"label": labels})
    assert again == weighted != plain
