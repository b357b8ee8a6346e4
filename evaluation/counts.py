"""Integer counts of predictions, in the data set's own label ids, from which all scores follow.

The official Cityscapes scorer counts label ids too, not train ids: a pixel predicted as an ignored
id is an error of its true class; a pixel whose truth is ignored does not count. Needs only
NumPy, OpenCV and cityscapesscripts.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np

from utils.data.class_weights import histogram
from utils.data.label_table import LabelTable

CELLS = 1 << 16  # a 16-bit number encodes a pixel's (truth, prediction)
ID, SIZE, HITS, CATEGORY_HITS = range(4)  # columns of Counts.instances
IGNORED, OUTSIDE = 255, 254  # in border_counts: ignored truth, and pixels beyond the image


@dataclass(frozen=True)
class Counts:
    """Counts of one image, or of many images together; compute_scores needs nothing else."""

    confusion: np.ndarray  # (ids,ids) int64 pixels: rows truth, columns prediction
    instances: np.ndarray  # (n,4) int64: id, pixels, pixels predicted as its class, as its category
    border: np.ndarray  # (ids,2) int64: intersection and union of the border zones

    @staticmethod
    def total(parts: Iterable["Counts"]) -> "Counts":
        """Counts of all images together; rows of instances keep the order of the images."""
        columns = ((part.confusion, part.instances, part.border) for part in parts)
        confusions, instances, borders = zip(*columns, strict=True)
        return Counts(sum(confusions), np.concatenate(instances), sum(borders))


def joint_counts(
    truth: np.ndarray, prediction: np.ndarray, num_ids: int, likely: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(H,W) uint8 or uint16, (H,W) uint8 below num_ids -> (n,) numbers that occur in `truth`, and
    (n,ids) int64, how often each id is predicted there.

    One histogram counts everything: a table gives each of the `likely` numbers a row of cells.
    """
    last = CELLS // num_ids - 1  # the row shared by all numbers outside `likely`

    def count(numbers: np.ndarray) -> tuple[np.ndarray, bool]:
        row = np.full(1 << 8 * truth.itemsize, last * num_ids, np.uint16)
        row[numbers] = np.arange(len(numbers)) * num_ids
        cells = cv2.LUT(truth, row)
        cells += prediction
        counts = histogram(cells)
        found = counts[: len(numbers) * num_ids].reshape(-1, num_ids)
        return found, bool(counts[last * num_ids :].any())

    joint, others = count(likely)
    if others:
        likely = np.unique(truth)
        parts = [likely[start : start + last] for start in range(0, len(likely), last)]
        joint = np.concatenate([count(part)[0] for part in parts])
    present = joint.any(1)
    return likely[present], joint[present]


def likely_numbers(classes: LabelTable) -> np.ndarray:
    """All ids, and as many instance ids of each class with instances as one histogram can hold."""
    things = sorted({x for group in classes.instance_categories.values() for x in group})
    each = (CELLS // classes.num_ids - 1 - classes.num_ids) // max(len(things), 1)
    instances = [classes.instance_base * number + np.arange(each) for number in things]
    return np.concatenate([np.arange(classes.num_ids), *instances])


def count_pixels(
    truth: np.ndarray, prediction: np.ndarray, classes: LabelTable, *, border: int = 0
) -> Counts:
    """Counts of one image.

    truth: (H,W) uint16 Cityscapes instance ids, or uint8 ids if the data set has no instances;
    prediction: (H,W) uint8 ids; border: width in pixels of the zone for boundary IoU, 0 for none.
    ValueError for ids that the data set does not have. Benchmark: benchmarks/bench_score.py.
    """
    num_ids = classes.num_ids
    if prediction.max() >= num_ids:
        raise ValueError(f"id {prediction.max()}, ids are 0 to {num_ids - 1}")
    numbers, joint = joint_counts(truth, prediction, num_ids, likely_numbers(classes))
    ids = classes.to_plain_ids(numbers.astype(np.uint16)).ravel()
    if ids.max() >= num_ids:
        raise ValueError(f"undefined ids {numbers[ids >= num_ids].tolist()[:5]}")
    confusion = np.zeros((num_ids, num_ids), np.int64)
    np.add.at(confusion, ids, joint)

    related = np.zeros((num_ids, num_ids), bool)
    for group in classes.instance_categories.values():
        related[np.ix_(group, group)] = True
    counted = (numbers > classes.instance_base) & np.isin(ids, list(classes.instance_sizes))
    ids, joint = ids[counted].astype(np.int64), joint[counted]
    hits = joint[np.arange(len(ids)), ids]
    instances = np.stack([ids, joint.sum(1), hits, (joint * related[ids]).sum(1)], 1)
    zones = np.zeros((num_ids, 2), np.int64)
    if border:
        truth = classes.to_plain_ids(truth.astype(np.uint16))
        zones = border_counts(truth, prediction, classes, border)
    return Counts(confusion, instances, zones)


def border_counts(
    truth: np.ndarray, prediction: np.ndarray, classes: LabelTable, width: int
) -> np.ndarray:
    """(H,W) uint8 ids of truth and prediction -> (ids,2) int64 intersection and union of zones.

    Boundary IoU (Cheng et al., CVPR 2021, eq. 1): only pixels of a mask within `width` rows and
    columns of its contour count; the image edge is part of the contour. Pixels of ignored truth are
    removed from the prediction too, so that they cut both contours in the same way.
    """
    table = np.full(256, IGNORED, np.uint8)  # ids may be any number, train ids are below OUTSIDE
    table[classes.ids] = np.arange(classes.num_classes)
    truth = cv2.LUT(truth, table)
    ignored = (truth == IGNORED) * np.uint8(IGNORED)
    maps = [truth, cv2.LUT(prediction, table) | ignored]
    square = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    outside = {"borderType": cv2.BORDER_CONSTANT, "borderValue": OUTSIDE}
    # A pixel is in the zone if the maximum and minimum label in the square around it differ.
    truth_zone, prediction_zone = (
        cv2.compare(cv2.dilate(x, square, **outside), cv2.erode(x, square, **outside), cv2.CMP_NE)
        for x in maps
    )
    both = truth_zone & prediction_zone & cv2.compare(*maps, cv2.CMP_EQ)
    inside = histogram(maps[0], both)
    union = histogram(maps[0], truth_zone) + histogram(maps[1], prediction_zone) - inside
    zones = np.zeros((classes.num_ids, 2), np.int64)
    zones[classes.ids] = np.stack([inside, union], 1)[: classes.num_classes]
    return zones
