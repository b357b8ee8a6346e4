"""Augmentation: pure, in bounds, image and label in step."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.normalize import IMAGENET_MEAN, normalize
from utils.data.augment import (
    PLANES,
    SampleParams,
    Stream,
    color_matrix,
    crop_plane,
    sample_params,
)
from utils.data.label_table import IGNORE

side = st.integers(1, 300)


def cropped_from(image, label, params: SampleParams, crop: tuple[int, int]):
    out = np.empty((*crop, 3), np.uint8), np.empty(crop, np.uint8)
    for pixels, plane, filled in zip((image, label), ("image", "label"), out, strict=True):
        crop_plane(pixels, params, filled, PLANES[plane])
    return out


@settings(deadline=None, derandomize=True, max_examples=150)
@given(size=st.tuples(side, side), crop=st.tuples(st.integers(16, 200), st.integers(16, 200)),
       low=st.floats(0.05, 4), more=st.floats(1, 4), index=st.integers(0, 10**6))  # fmt: skip
def test_any_size_gives_a_full_crop(size, crop, low, more, index):
    scale = (low, low * more)
    params = sample_params(0, 1, index, size=size, crop=crop, scale=scale, flip=True)
    assert 0 <= params.top <= size[0] - params.height
    assert 0 <= params.left <= size[1] - params.width
    assert all(1 <= length <= most for length, most in zip(params.resized, crop, strict=True))
    image = np.full((*size, 3), 7, np.uint8)
    image, label = cropped_from(image, np.full(size, 3, np.uint8), params, crop)
    assert image.shape == (*crop, 3) and label.shape == crop
    height, width = params.resized
    assert (label[:height, :width] == 3).all() and (image[:height, :width] == 7).all()
    assert (label[height:] == IGNORE).all() and (label[:, width:] == IGNORE).all()
    padding = PLANES["image"].padding
    assert (image[height:] == padding).all() and (image[:, width:] == padding).all()


@settings(deadline=None, derandomize=True, max_examples=150)
@given(size=st.tuples(side, side), crop=st.integers(16, 200), factor=st.floats(0.2, 4),
       place=st.tuples(st.floats(0, 0.9), st.floats(0, 0.9)), index=st.integers(0, 9))  # fmt: skip
def test_a_window_holds_the_pixel_it_is_drawn_around(size, crop, factor, place, index):
    y, x = (int(share * length) for share, length in zip(place, size, strict=True))
    params = sample_params(
        0, 0, index, size=size, crop=(crop, crop), scale=(factor, factor), flip=True, around=(y, x)
    )
    assert 0 <= params.top <= y < params.top + params.height <= size[0]
    assert 0 <= params.left <= x < params.left + params.width <= size[1]


def test_the_pixel_a_window_is_drawn_around_lies_anywhere_in_it():
    options = {"size": (1000, 1000), "crop": (64, 64), "scale": (1.0, 1.0), "flip": True}
    tops = [sample_params(0, 0, i, around=(500, 20), **options).top for i in range(400)]
    assert min(tops) <= 440 and max(tops) >= 497 and abs(np.mean(tops) - 468.5) < 4


def test_parameters_are_a_pure_function_that_differs_between_samples():
    options = {"size": (500, 900), "crop": (64, 64), "scale": (0.5, 2.0), "flip": True}
    first = [sample_params(0, 0, index, **options) for index in range(50)]
    assert first == [sample_params(0, 0, index, **options) for index in range(50)]
    for other in ((1, 0), (0, 1)):
        assert first != [sample_params(*other, index, **options) for index in range(50)]
    assert len(set(first)) == 50
    assert 10 < sum(params.flip for params in first) < 40
    assert not any(sample_params(0, 0, i, **(options | {"flip": False})).flip for i in range(50))


def test_scale_covers_its_range():
    options = {"size": (2000, 2000), "crop": (100, 100), "scale": (0.5, 2.0), "flip": False}
    heights = [sample_params(0, 0, index, **options).height for index in range(300)]
    assert 50 <= min(heights) < 55 and 190 < max(heights) <= 200


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.7])
def test_image_and_label_stay_in_step(scale):
    """A picture that shows its own label keeps doing so, but for the edges that scaling blurs."""
    label = np.kron(np.random.default_rng(0).integers(0, 19, (8, 8)), np.ones((32, 32)))
    label = label.astype(np.uint8)
    image = np.repeat(label[..., None] * 10, 3, 2)
    for index in range(20):
        params = sample_params(
            0, 0, index, size=(256, 256), crop=(96, 96), scale=(scale, scale), flip=True
        )
        cropped, found = cropped_from(image, label, params, (96, 96))
        kernel = np.ones((5, 5))
        inner = cv2.erode(found, kernel) == cv2.dilate(found, kernel)
        inner[[0, -1]] = inner[:, [0, -1]] = False  # what lies beyond the rim is unknown
        assert inner.mean() > 0.2
        assert (cropped[inner] == found[inner, None] * 10).all()


@pytest.mark.parametrize("factor", [0.3, 0.5, 0.77, 1.0, 1.31, 2.0])
def test_scaling_the_window_is_scaling_the_image_but_for_a_shift_of_a_pixel(factor):
    """window-then-scale against scale-then-crop, the peers' order.

    The pixels say where they come from: channel 0 is x, channel 1 is y.
    """
    y, x = np.mgrid[:240, :250].astype(np.uint8)
    image, label = np.dstack([x, y, x]), np.zeros((240, 250), np.uint8)
    crop = (48, 60)
    whole = cv2.resize(
        image, (round(250 * factor), round(240 * factor)),
        interpolation=cv2.INTER_AREA if factor < 0.5 else cv2.INTER_LINEAR,
    )  # fmt: skip
    shifts = []
    for index in range(100):
        params = sample_params(
            3, 0, index, size=(240, 250), crop=crop, scale=(factor, factor), flip=False
        )
        ours, _ = cropped_from(image, label, params, crop)
        assert params.resized == crop
        top, left = round(params.top * factor), round(params.left * factor)
        theirs = whole[top : top + crop[0], left : left + crop[1]]
        ours = ours[: theirs.shape[0], : theirs.shape[1]]
        inside = (slice(1, -1), slice(1, -1))  # at the rim one of them has no neighbour
        shifts.append(np.abs(ours.astype(float) - theirs)[inside].max() * factor)
    assert max(shifts) <= 1.5 + factor, "1.5 output pixels, and one grey level for rounding"
    assert (max(shifts) == 0) == (factor in (1.0, 2.0)), "no difference where nothing is rounded"


def distance_from_uniform(values: list[float]) -> float:
    """Kolmogorov and Smirnov's statistic times sqrt(n): above 1.63 in one of 100 cases."""
    ordered, n = np.sort(values), len(values)
    steps = np.arange(n + 1) / n
    gap = max(np.abs(ordered - steps[1:]).max(), np.abs(ordered - steps[:-1]).max())
    return gap * n**0.5


def test_scales_windows_and_flips_are_spread_evenly():
    low, high, size, crop = 0.5, 2.0, (9000, 12000), (1000, 1500)
    drawn = [
        sample_params(
            0, index // 500, index % 500, size=size, crop=crop, scale=(low, high), flip=True
        )
        for index in range(2000)
    ]
    factors = [(crop[0] / params.height - low) / (high - low) for params in drawn]
    assert distance_from_uniform(factors) < 1.63
    assert distance_from_uniform([p.top / (size[0] - p.height) for p in drawn]) < 1.63
    assert distance_from_uniform([p.left / (size[1] - p.width) for p in drawn]) < 1.63
    assert abs(np.mean([params.flip for params in drawn]) - 0.5) < 2.58 * 0.5 / 2000**0.5
    tops = np.array([p.top / (size[0] - p.height) for p in drawn])
    for other in (factors, [p.left / (size[1] - p.width) for p in drawn], [p.flip for p in drawn]):
        assert abs(np.corrcoef(tops, other)[0, 1]) < 0.06


def test_normalize_gives_channels_last_floats_around_zero():
    mean = torch.tensor(IMAGENET_MEAN).round().byte()
    images = mean.expand(2, 5, 6, 3).contiguous()
    normal = normalize(images)
    assert normal.shape == (2, 3, 5, 6) and normal.dtype == torch.float32
    assert normal.is_contiguous(memory_format=torch.channels_last)
    assert normal.abs().max() < 0.01


def test_the_numbers_of_the_random_streams_never_change():
    """A run that goes on after an update of this code must draw what it would have drawn."""
    assert {stream.name: int(stream) for stream in Stream} == {
        "ORDER": 1, "AUGMENTATION": 2, "DROPOUT": 3, "PHOTOMETRIC": 4, "CLASS_UNIFORM": 5,
    }  # fmt: skip


@pytest.mark.parametrize("stream", Stream)
def test_a_seed_with_a_streams_name_is_one_with_its_number(stream):
    named, plain = (np.random.default_rng((x, 7, 3)).random(9) for x in (stream, stream.value))
    assert type(stream.value) is int and np.array_equal(named, plain)


def test_augmentation_draws_from_its_streams():
    params = sample_params(
        7, 3, 5, size=(500, 900), crop=(64, 64), scale=(0.5, 2.0), flip=True, attempt=0
    )
    rng = np.random.default_rng((2, 7, 3, 5))
    side = round(64 / rng.uniform(0.5, 2.0))
    top, left = (int(rng.integers(0, full - side + 1)) for full in (500, 900))
    assert (params.top, params.left, params.height, params.width) == (top, left, side, side)
    assert params.flip == (rng.random() < 0.5)
    used = [np.random.default_rng((4, 7, 3, i)) for i in range(40)]
    used = [(rng.uniform(size=4), rng.random(4) < 0.5)[1] for rng in used]
    plain = [np.array_equal(color_matrix(7, 3, i), np.eye(3, 4)) for i in range(40)]
    assert plain == [not any(flags) for flags in used] and 0 < sum(plain) < 40


@pytest.mark.parametrize("factor", [0.4, 1.0, 1.7])
def test_instance_ids_follow_their_labels(factor):
    """Sixteen bits: nothing is rounded, mixed or cut off; padding belongs to no instance."""
    rng = np.random.default_rng(1)
    instances = np.kron(rng.integers(24000, 33999, (8, 8)), np.ones((32, 32))).astype(np.uint16)
    label = (instances // 1000).astype(np.uint8)
    for index in range(10):
        params = sample_params(
            0, 0, index, size=(256, 256), crop=(160, 300), scale=(factor, factor), flip=True
        )
        found, ids = np.empty((160, 300), np.uint16), np.empty((160, 300), np.uint8)
        crop_plane(instances, params, found, PLANES["instance"])
        crop_plane(label, params, ids, PLANES["label"])
        height, width = params.resized
        inside = (slice(height), slice(width))
        assert np.array_equal(found[inside] // 1000, ids[inside])
        assert set(np.unique(found[inside])) <= set(np.unique(instances))
        assert not found[height:].any() and not found[:, width:].any()
