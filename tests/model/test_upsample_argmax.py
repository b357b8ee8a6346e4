"""Upsampled argmax against its definition."""

import tracemalloc

import pytest
import torch
from torch.nn import functional as F

from model.ops.upsample_argmax import upsample_argmax, upsample_argmax_reference

NOISE = torch.randn(1, 19, 64, 128, generator=torch.Generator().manual_seed(0))
SIZES = [((3, 4), (24, 32)), ((4, 5), (31, 33)), ((23, 23), (360, 360)), ((1, 1), (7, 5))]


def logits_and_labels(small, large, classes=5):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, classes, *small, generator=generator)
    labels = torch.randint(0, classes, (2, *large), generator=generator).byte()
    labels[:, 0] = 255
    return logits, labels


def smooth(classes: int, size: tuple[int, int], scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    """(2,K,*size) logits of objects: most neighbours have the same winner."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(2, classes, 2 + size[0] // 8, 2 + size[1] // 8, generator=generator)
    return F.interpolate(coarse * scale, size, mode="bicubic")


def check_argmax(logits: torch.Tensor, size: tuple[int, int], align_corners: bool) -> int:
    """Every pixel is right, but for ties within rounding; the number of those."""
    full = F.interpolate(logits.float(), size, mode="bilinear", align_corners=align_corners)
    labels = upsample_argmax(logits, size, align_corners=align_corners)
    assert labels.dtype == torch.uint8 and labels.shape == (len(logits), *size)
    best, expected = full.max(1)
    found = full.gather(1, labels.long()[:, None])[:, 0]
    different = labels != expected
    gap = (best - found)[different]
    assert gap.numel() == 0 or gap.max() < 1e-5 * max(1.0, full.abs().max().item())
    return int(different.sum())


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    "small, large",
    [*SIZES, ((16, 32), (128, 256)), ((33, 33), (513, 513)), ((97, 97), (769, 769)),
     ((45, 60), (360, 480)), ((20, 30), (7, 11)), ((9, 1), (70, 3)), ((64, 64), (64, 64)),
     ((16, 32), (512, 1024)), ((5, 7), (133, 211)), ((1, 3), (40, 90))],
)  # fmt: skip
def test_argmax_is_interpolate_then_argmax(small, large, align_corners):
    """Noise, where all pixels are computed, and smooth logits, where few are."""
    noise, _ = logits_and_labels(small, large)
    for logits in (noise, smooth(5, small), smooth(19, small, 5.0)):
        assert check_argmax(logits, large, align_corners) <= 2


def test_argmax_of_logits_of_the_labels_own_size_is_torch_s():
    logits = torch.randint(0, 3, (2, 19, 31, 33)).float()  # ties in most pixels
    for values in (logits, logits.bfloat16(), logits.double(), logits.requires_grad_()):
        for align_corners in (False, True):
            train_ids = upsample_argmax(values, (31, 33), align_corners=align_corners)
            assert train_ids.dtype == torch.uint8 and not train_ids.requires_grad
            assert torch.equal(train_ids, values.argmax(1).byte())


@pytest.mark.parametrize("classes", [1, 2, 3, 19, 171, 256])
def test_argmax_of_any_number_of_classes(classes):
    for logits in (smooth(classes, (12, 14)), torch.randn(1, classes, 12, 14)):
        assert check_argmax(logits, (96, 112), False) <= 2


@pytest.mark.parametrize("mixed", [0.0, 1.1])
def test_both_ways_of_the_argmax_agree(monkeypatch, mixed):
    """Slabs on smooth logits, cells on noise."""
    monkeypatch.setattr("model.ops.upsample_argmax.MIXED", mixed)
    for logits in (smooth(19, (16, 24)), torch.randn(2, 19, 16, 24)):
        for size in ((128, 192), (125, 200)):
            assert check_argmax(logits, size, False) <= 2


def test_a_class_that_wins_between_its_neighbours_only():
    """Second everywhere, first in between: pruning by corners must keep it."""
    logits = torch.zeros(1, 3, 2, 2)
    logits[0, 0, :, 0], logits[0, 1, :, 1], logits[0, 2] = 10.0, 10.0, 9.0
    labels = upsample_argmax(logits, (16, 64))
    assert {0, 1, 2} == set(labels.unique().tolist())
    assert check_argmax(logits, (16, 64), False) == 0


def test_ties_go_to_the_first_class_as_in_torch():
    logits = torch.zeros(1, 7, 4, 5)
    logits[:, 3:5] = 1.0
    assert (upsample_argmax(logits, (32, 40)) == 3).all()
    logits[:, 3, 2:], logits[:, 4, :2] = 0.5, 0.5  # two winners, cells between are mixed
    assert check_argmax(logits, (32, 40), False) == 0


def test_argmax_of_half_precision_and_of_views():
    logits = smooth(19, (16, 24)).bfloat16()
    assert check_argmax(logits, (128, 192), False) <= 2
    view, size = smooth(19, (24, 16)).transpose(2, 3), (64, 96)
    assert torch.equal(upsample_argmax(view, size), upsample_argmax(view.contiguous(), size))
    strided = smooth(19, (16, 24)).to(memory_format=torch.channels_last).requires_grad_()
    assert check_argmax(strided.detach(), (128, 192), False) <= 2
    assert not upsample_argmax(strided, (128, 192)).requires_grad


@pytest.mark.parametrize("logits", [smooth(19, (64, 128))[:1], NOISE])
def test_argmax_needs_a_fifth_of_the_memory_of_full_logits(logits):
    tracemalloc.start()
    upsample_argmax(logits, (512, 1024))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 512 * 1024 < peak < 19 * 512 * 1024 * 4 / 5


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_labelled_as_by_argmax(value):
    logits = torch.randn(2, 5, 4, 6)
    logits[0, 1, 2, 3] = logits[1, 4, 0, 0] = value
    expected = upsample_argmax_reference(logits, (32, 48))
    assert torch.equal(upsample_argmax(logits, (32, 48)), expected)
