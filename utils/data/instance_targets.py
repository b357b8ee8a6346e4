"""What a panoptic network learns about the instances of a training crop: a pure function of it."""

import cv2
import numpy as np
import torch

from utils.data.class_weights import histogram
from utils.data.label_table import INVALID, LabelTable

NOTHING, STUFF, THING, SMALL_THING = range(4)  # values of "region"
SIGMA, RADIUS = 8, 25  # deviation of the heat around a center, 3 of them and one pixel
SMALL = 64**2  # pixels in the crop; smaller instances weigh more
# Plane of a batch -> its type, and its shape before (h,w).
TARGETS: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
    "region": (torch.uint8, ()),
    "heat": (torch.float32, ()),
    "offset": (torch.float32, (2,)),
    "thing": (torch.int16, ()),
}


def kernel() -> np.ndarray:
    squares = np.arange(-RADIUS, RADIUS + 1) ** 2
    return np.exp(-(squares[:, None] + squares) / (2 * SIGMA**2)).astype(np.float32)


KERNEL = kernel()


def draw_numbers(instances: np.ndarray, classes: LabelTable, thing: np.ndarray) -> None:
    """(h,w) uint16 instance ids -> fill thing (h,w) int16: 1, 2, ... for the instances, else 0."""
    numbers = np.flatnonzero(histogram(instances)).astype(np.uint16)
    things = np.isin(classes.to_plain_ids(numbers).ravel(), [*classes.instance_sizes])
    counted = numbers[things & (numbers >= classes.instance_base)]
    table = np.zeros(1 << 16, np.int16)
    table[counted] = np.arange(1, len(counted) + 1)
    cv2.LUT(instances, table, thing)


def draw_targets(
    instances: np.ndarray,
    classes: LabelTable,
    *,
    region: np.ndarray,
    heat: np.ndarray,
    offset: np.ndarray,
) -> None:
    """(h,w) uint16 instance ids -> fill region (h,w) uint8, heat (h,w) and offset (2,h,w) float32.

    region: NOTHING for void and for groups of things without instance ids. heat: maximum over the
    instances of a Gaussian around the rounded center of the visible pixels. offset: y and x from
    each pixel of an instance to its center, in pixels; 0 elsewhere (Panoptic-DeepLab, section 3.2).
    """
    pixels = histogram(instances)
    numbers = np.flatnonzero(pixels).astype(np.uint16)
    ids = classes.to_plain_ids(numbers).ravel()
    things = np.isin(ids, [*classes.instance_sizes])
    counted = things & (numbers >= classes.instance_base)
    table = np.zeros(1 << 16, np.uint8)
    table[numbers[(classes.id_to_train[ids] < INVALID) & ~things]] = STUFF
    table[numbers[counted]] = np.where(pixels[numbers[counted]] < SMALL, SMALL_THING, THING)
    region[...] = cv2.LUT(instances, table)
    heat[...], offset[...] = 0, 0

    order = np.zeros(1 << 16, np.int64)
    order[numbers[counted]] = np.arange(counted.sum())
    places = np.nonzero(region >= THING)
    own = order[instances[places]]
    areas = pixels[numbers[counted]]
    centers = [np.bincount(own, x, len(areas)) / areas for x in places]
    for axis, (place, center) in enumerate(zip(places, centers, strict=True)):
        offset[axis][places] = center[own] - place
    for y, x in np.rint(centers).astype(int).T.tolist():
        top, left = max(0, y - RADIUS), max(0, x - RADIUS)
        window = heat[top : y + RADIUS + 1, left : x + RADIUS + 1]
        below, right = RADIUS - y + top, RADIUS - x + left
        part = KERNEL[below : below + window.shape[0], right : right + window.shape[1]]
        np.maximum(window, part, out=window)
