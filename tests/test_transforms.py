"""Augmentation: pure, in bounds, image and label in step."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.labels import IGNORE
from utils.transforms import IMAGENET_MEAN, SampleParams, crop_sample, normalize, sample_params

side = st.integers(1, 300)


def cropped_from(image, label, params: SampleParams, crop: tuple[int, int]):
    out = np.empty((*crop, 3), np.uint8), np.empty(crop, np.uint8)
    crop_sample(image, label, params, *out)
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


def test_scaling_the_window_equals_scaling_the_image_inside():
    """window-then-scale against scale-then-window: the same pixels up to the window's rim."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (40, 60, 3)).astype(np.uint8)
    image = cv2.resize(coarse, (960, 640), interpolation=cv2.INTER_CUBIC)
    params = sample_params(3, 0, 0, size=(640, 960), crop=(128, 128), scale=(0.5, 0.5), flip=False)
    ours, _ = cropped_from(image, np.zeros((640, 960), np.uint8), params, (128, 128))
    whole = cv2.resize(image, (480, 320), interpolation=cv2.INTER_AREA)
    top, left = params.top // 2, params.left // 2
    theirs = whole[top : top + 128, left : left + 128].astype(int)
    odd = params.top % 2 + params.left % 2  # an odd offset is half a scaled pixel
    assert np.abs(ours.astype(int) - theirs).max() <= (2 if odd == 0 else 40)


def test_normalize_gives_channels_last_floats_around_zero():
    mean = torch.tensor(IMAGENET_MEAN).round().byte()
    images = mean.expand(2, 5, 6, 3).contiguous()
    normal = normalize(images)
    assert normal.shape == (2, 3, 5, 6) and normal.dtype == torch.float32
    assert normal.is_contiguous(memory_format=torch.channels_last)
    assert normal.abs().max() < 0.01
