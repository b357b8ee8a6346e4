"""Cross entropy without full-size logits against F.interpolate and F.cross_entropy."""

import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from model.ops import bilinear
from model.ops.upsample_cross_entropy import (
    hard_pixels,
    hardest_pixels,
    upsample_cross_entropy,
    upsample_cross_entropy_reference,
)
from utils.base.paths import REPOSITORY

SIZES = [((3, 4), (24, 32)), ((4, 5), (31, 33)), ((23, 23), (360, 360)), ((1, 1), (7, 5))]
SIZES += [((33, 33), (513, 513)), ((97, 97), (769, 769)), ((20, 30), (7, 11)), ((9, 300), (9, 300))]
SIZES += [((9, 300), (18, 300))]
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 3.0, 4.0])


def logits_and_labels(small, large, *, classes=5, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, classes, *small, generator=generator, dtype=torch.float64) * 3
    labels = torch.randint(0, classes, (2, *large), generator=generator).byte()
    labels[:, 0] = 255
    return logits.to(dtype), labels


def with_gradient(op, logits, labels, **options):
    logits = logits.detach().requires_grad_()
    loss_sum, weight_sum = op(logits, labels, **options)
    loss_sum.backward()
    return loss_sum.detach(), weight_sum, logits.grad


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("class_weights", [None, WEIGHTS.double()], ids=["plain", "weighted"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted_pixels", [False, True])
@pytest.mark.parametrize("small, large", SIZES)
def test_loss_and_gradient_are_the_reference_s(
    small, large, weighted_pixels, label_smoothing, class_weights, align_corners
):
    logits, labels = logits_and_labels(small, large, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    pixel_weights = 3 * torch.rand(labels.shape, generator=generator, dtype=torch.float64)
    options = {
        "class_weights": class_weights,
        "label_smoothing": label_smoothing,
        "align_corners": align_corners,
        "pixel_weights": pixel_weights if weighted_pixels else None,
    }
    found = with_gradient(upsample_cross_entropy, logits, labels, **options)
    expected = with_gradient(upsample_cross_entropy_reference, logits, labels, **options)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("class_weights", [None, WEIGHTS.double()], ids=["plain", "weighted"])
@pytest.mark.parametrize("small, large", SIZES)
def test_the_loss_alone_is_the_reference_s(small, large, class_weights, align_corners, scale):
    """Where no gradient is wanted, none is computed; logits up to far apart."""
    logits, labels = logits_and_labels(small, large, dtype=torch.float64)
    options = {"class_weights": class_weights, "align_corners": align_corners}
    found = upsample_cross_entropy(logits * scale, labels, **options)
    expected = upsample_cross_entropy_reference(logits * scale, labels, **options)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=1e-9, atol=1e-9)
    weights = None if class_weights is None else WEIGHTS
    single, _ = upsample_cross_entropy(
        (logits * scale).float(), labels, class_weights=weights, align_corners=align_corners
    )
    torch.testing.assert_close(single, expected[0].float(), rtol=2e-6, atol=1e-5)


@pytest.mark.parametrize("slab, band", [(1, 1), (700, 3), (1 << 30, 1 << 30)])
def test_every_way_of_cutting_gives_the_same(monkeypatch, slab, band):
    """One row or all rows at once; one column or all of them."""
    monkeypatch.setattr(bilinear, "SLAB_LOGITS", slab)
    monkeypatch.setattr(bilinear, "BAND_COLUMNS", band)
    for small, large in SIZES:
        logits, labels = logits_and_labels(small, large, dtype=torch.float64)
        for align_corners in (False, True):
            found, expected = (
                with_gradient(op, logits, labels, align_corners=align_corners)
                for op in (upsample_cross_entropy, upsample_cross_entropy_reference)
            )
            for ours, theirs in zip(found, expected, strict=True):
                torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("class_weights", [None, WEIGHTS], ids=["plain", "weighted"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_logits_of_the_labels_own_size_give_torch_s_bits(label_smoothing, class_weights):
    """Value and gradient are F.cross_entropy's, whatever align_corners says."""
    logits, labels = logits_and_labels((31, 33), (31, 33))
    for kind in (torch.uint8, torch.int64):
        for align_corners in (False, True):
            loss_sum, weight_sum, gradient = with_gradient(
                upsample_cross_entropy, logits, labels.to(kind), class_weights=class_weights,
                label_smoothing=label_smoothing, align_corners=align_corners,
            )  # fmt: skip
            own = logits.clone().requires_grad_()
            expected = F.cross_entropy(
                own, labels.long(), weight=class_weights, ignore_index=255,
                label_smoothing=label_smoothing, reduction="sum",
            )  # fmt: skip
            expected.backward()
            assert torch.equal(loss_sum, expected.detach()) and torch.equal(gradient, own.grad)
            counted = labels[labels != 255].long()
            weights = torch.ones(5) if class_weights is None else class_weights
            assert weight_sum == weights[counted].sum() and not weight_sum.requires_grad
    bits = with_gradient(upsample_cross_entropy, logits.bfloat16(), labels)
    exact = with_gradient(upsample_cross_entropy, logits.bfloat16().float(), labels)
    assert torch.equal(bits[0], exact[0]) and bits[2].dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        inside = with_gradient(upsample_cross_entropy, logits, labels)
    outside = with_gradient(upsample_cross_entropy, logits, labels)
    assert all(torch.equal(a, b) for a, b in zip(inside, outside, strict=True))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_gradcheck(label_smoothing):
    logits, labels = logits_and_labels((3, 4), (10, 13), dtype=torch.float64)

    def loss(logits):
        sums = upsample_cross_entropy(
            logits, labels, class_weights=WEIGHTS.double(), label_smoothing=label_smoothing
        )
        return sums[0] / sums[1]

    assert torch.autograd.gradcheck(loss, logits.requires_grad_())


@pytest.mark.parametrize("class_weights", [None, WEIGHTS], ids=["plain", "weighted"])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_float32_gradient_is_as_exact_as_the_reference_s(class_weights, scale):
    """Errors against float64; 30: logits so far apart that most probabilities underflow."""
    logits, labels = logits_and_labels((24, 24), (192, 192), dtype=torch.float64)
    logits = logits * scale
    exact = with_gradient(
        upsample_cross_entropy_reference,
        logits,
        labels,
        class_weights=None if class_weights is None else class_weights.double(),
    )
    errors = {}
    for op in (upsample_cross_entropy, upsample_cross_entropy_reference):
        found = with_gradient(op, logits.float(), labels, class_weights=class_weights)
        assert found[0].dtype == found[2].dtype == torch.float32
        assert (found[0] - exact[0]).abs() < 1e-5 * exact[0]
        errors[op] = (found[2] - exact[2]).norm() / exact[2].norm()
    assert errors[upsample_cross_entropy] <= 1.2 * errors[upsample_cross_entropy_reference]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    logits, labels = logits_and_labels((12, 12), (96, 96))
    found, expected = (
        with_gradient(upsample_cross_entropy, values, labels)
        for values in (logits.to(dtype), logits.to(dtype).float())
    )
    assert found[2].dtype == dtype
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=0)
    torch.testing.assert_close(found[2], expected[2].to(dtype), rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):  # must not reach the matrix products inside
        inside = with_gradient(upsample_cross_entropy, logits, labels)
    outside = with_gradient(upsample_cross_entropy, logits, labels)
    assert all(torch.equal(a, b) for a, b in zip(inside, outside, strict=True))


def test_the_same_bits_every_time():
    logits, labels = logits_and_labels((24, 32), (190, 250))
    first = with_gradient(upsample_cross_entropy, logits, labels)
    for _ in range(3):
        again = with_gradient(upsample_cross_entropy, logits, labels)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    loss_sum, weight_sum = upsample_cross_entropy(logits, labels)  # without a gradient
    assert not loss_sum.requires_grad
    assert torch.equal(loss_sum, first[0]) and torch.equal(weight_sum, first[1])


def test_channels_last_logits_and_wide_labels():
    logits, labels = logits_and_labels((12, 16), (96, 128))
    expected = with_gradient(upsample_cross_entropy, logits, labels)
    strided = logits.to(memory_format=torch.channels_last)
    for kind in (torch.int64, torch.int32):
        found = with_gradient(upsample_cross_entropy, strided, labels.to(kind))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    other = labels.long().masked_fill(labels == 255, -100)
    found = with_gradient(upsample_cross_entropy, logits, other, ignore_index=-100)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    alone = upsample_cross_entropy(logits, other, ignore_index=-100)
    assert torch.equal(alone[0], expected[0])


def test_a_label_that_is_no_class_is_refused():
    logits, labels = logits_and_labels((3, 4), (24, 32))
    labels[1, 5, 5] = 5
    with pytest.raises(IndexError, match="out of range for 5 classes"):
        upsample_cross_entropy(logits, labels)


def test_a_batch_without_labels_costs_nothing_and_has_a_finite_gradient():
    logits = torch.randn(1, 5, 4, 4, requires_grad=True)
    labels = torch.full((1, 16, 16), 255, dtype=torch.uint8)
    loss_sum, weight_sum = upsample_cross_entropy(logits, labels)
    loss_sum.backward()
    assert loss_sum == weight_sum == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_two_half_batches_add_up_to_the_whole():
    logits, labels = logits_and_labels((4, 5), (31, 33))
    labels[0, :20] = 255  # the halves have different numbers of labelled pixels
    whole = upsample_cross_entropy(logits, labels)
    halves = [upsample_cross_entropy(logits[i : i + 1], labels[i : i + 1]) for i in (0, 1)]
    for index in (0, 1):
        torch.testing.assert_close(whole[index], halves[0][index] + halves[1][index])


@pytest.mark.parametrize("threshold, min_kept", [(0.7, 0), (0.01, 0), (0.01, 500), (0.7, 10**9)])
def test_hard_pixels_are_those_of_low_probability_and_the_worst(threshold, min_kept):
    logits, labels = logits_and_labels((4, 5), (31, 33))
    kept = hard_pixels(logits, labels, threshold=threshold, min_kept=min_kept)
    full = F.interpolate(logits, labels.shape[1:], mode="bilinear").softmax(1)
    own = full.gather(1, labels.long().where(labels != 255, 0)[:, None])[:, 0]
    probability = own[labels != 255].tolist()
    limit = max(
        threshold, sorted(probability)[min(min_kept, len(probability)) - 1] if min_kept else 0
    )
    expected = [p <= limit for p in probability]
    assert sum(expected) >= min(min_kept, len(expected))
    assert (kept[labels != 255] != 255).tolist() == expected
    assert torch.equal(kept[kept != 255], labels[kept != 255])


def test_the_hardest_pixels_of_each_image_are_kept():
    """By weighted loss, the same number in every image; unlabelled pixels come last."""
    logits, labels = logits_and_labels((4, 5), (30, 40))
    labels[1, 3:] = 255  # fewer labelled pixels than the share
    weights = 0.5 + torch.rand(labels.shape)
    kept = hardest_pixels(logits, labels, weights, share=0.2)
    full = F.interpolate(logits, labels.shape[1:], mode="bilinear")
    losses = F.cross_entropy(full, labels.long(), ignore_index=255, reduction="none") * weights
    limit = losses[0].flatten().sort(descending=True)[0][240 - 1]
    assert torch.equal(kept[0] != 255, losses[0] >= limit) and (kept[0] != 255).sum() == 240
    assert torch.equal(kept[1], labels[1]) and (kept[1] != 255).sum() == 80
    assert torch.equal(kept[0][kept[0] != 255], labels[0][kept[0] != 255])


def test_the_loss_of_hard_pixels_has_their_mean_and_gradient():
    logits, labels = logits_and_labels((4, 5), (31, 33), dtype=torch.float64)
    kept = hard_pixels(logits, labels, threshold=0.3, min_kept=50)
    found, expected = (
        with_gradient(op, logits, kept)
        for op in (upsample_cross_entropy, upsample_cross_entropy_reference)
    )
    assert 50 <= expected[1] < (labels != 255).sum()
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs.to(ours.dtype))


MEMORY = """
import sys, torch
from model.ops import upsample_cross_entropy as ops
name, images, height, width = sys.argv[1], *map(int, sys.argv[2:])
torch.nn.functional.cross_entropy(torch.randn(1, 19, 8, 8), torch.zeros(1, 8, 8).long())
logits = torch.randn(images, 19, height // 8, width // 8, requires_grad=True)
labels = torch.randint(0, 19, (images, height, width), dtype=torch.uint8)
def peak():
    status = open("/proc/self/status").read()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024
open("/proc/self/clear_refs", "w").write("5")  # the peak so far is forgotten
before = peak()
loss, _ = getattr(ops, name)(logits, labels)
loss.backward()
print(peak() - before)
"""


def extra_mib(name, images, height, width):
    """Peak memory of loss and gradient above its inputs, in a process of its own."""
    command = [sys.executable, "-c", MEMORY, name, *map(str, (images, height, width))]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return float(done.stdout)


@pytest.mark.slow
def test_memory_is_an_eighth_of_the_reference_s():
    found, expected = (
        extra_mib(name, 4, 768, 768)
        for name in ("upsample_cross_entropy", "upsample_cross_entropy_reference")
    )
    assert 1 < found <= expected / 8


def test_eight_images_of_full_size_need_less_than_half_a_gigabyte():
    assert extra_mib("upsample_cross_entropy", 8, 1024, 2048) < 500


def test_a_compiled_step_leaves_the_loss_out_of_its_graphs():
    graphs = []

    def backend(graph, _):
        graphs.append(graph.code)
        return graph.forward

    def mean_loss(logits, labels):
        loss_sum, weight_sum = upsample_cross_entropy(logits * 2, labels)
        return loss_sum / weight_sum

    logits, labels = logits_and_labels((4, 5), (31, 33))
    compiled = torch.compile(mean_loss, backend=backend)
    assert compiled(logits, labels) == mean_loss(logits, labels)
    text = "".join(graphs)
    assert "truediv" in text and "matmul" not in text and "exp2" not in text
