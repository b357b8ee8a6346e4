"""Integer counts of predictions in a data set's own label ids: all that the scores need to know.

Counting in label ids, not train ids, is what the Cityscapes referee does: a pixel predicted as an
ignored id counts against its true class, a pixel whose truth is ignored counts nowhere. Needs
numpy and OpenCV only.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np

from utils.data.class_weights import histogram
from utils.data.label_table import LabelTable, ids_of_instances

CELLS = 1 << 16  # a pixel's (truth, prediction) is one 16-bit number
ID, SIZE, HITS, CATEGORY_HITS = range(4)  # columns of Counts.instances
IGNORED, OUTSIDE = 255, 254  # stand for ignored truth and for no image, in border_counts


@dataclass(frozen=True)
class Counts:
    """All that the scores need to know of one image, or of many."""

    confusion: np.ndarray  # (ids,ids) int64 pixels: rows truth, columns prediction
    instances: np.ndarray  # (n,4) int64: id, pixels, predicted as it, as its category
    border: np.ndarray  # (ids,2) int64: intersection and union of the border zones

    @staticmethod
    def total(parts: Iterable["Counts"]) -> "Counts":
        """Of all images together; rows of instances stay in the images' order."""
        columns = ((part.confusion, part.instances, part.border) for part in parts)
        confusions, instances, borders = zip(*columns, strict=True)
        return Counts(sum(confusions), np.concatenate(instances), sum(borders))


def joint_counts(
    truth: np.ndarray, prediction: np.ndarray, num_ids: int, likely: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(H,W) uint8 or uint16, (H,W) uint8 below num_ids -> every number in `truth`, (n,), and how
    often each id is predicted on it, (n,ids) int64.

    A table gives each of the `likely` numbers a row of cells, so one histogram counts everything.
    """
    last = CELLS // num_ids - 1  # the row that takes all numbers without one of their own

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
    """Ids, and of every class with instances as many instance ids as fit into one histogram."""
    things = sorted({x for group in classes.instance_categories.values() for x in group})
    each = (CELLS // classes.num_ids - 1 - classes.num_ids) // max(len(things), 1)
    instances = [1000 * number + np.arange(each) for number in things]
    return np.concatenate([np.arange(classes.num_ids), *instances])


def count_pixels(
    truth: np.ndarray, prediction: np.ndarray, classes: LabelTable, *, border: int = 0
) -> Counts:
    """Counts of one image.

    truth: (H,W) uint16 Cityscapes instance ids, or uint8 ids where a set has no instances;
    prediction: (H,W) uint8 ids; border: width in pixels of the zone for boundary IoU, 0 for none.
    ValueError for ids that the data set does not have. Measured: benchmarks/bench_score.py.
    """
    num_ids = classes.num_ids
    if prediction.max() >= num_ids:
        raise ValueError(f"id {prediction.max()}, ids are 0 to {num_ids - 1}")
    numbers, joint = joint_counts(truth, prediction, num_ids, likely_numbers(classes))
    ids = ids_of_instances(numbers.astype(np.uint16)).ravel()
    if ids.max() >= num_ids:
        raise ValueError(f"undefined truth {numbers[ids >= num_ids].tolist()[:5]}")
    confusion = np.zeros((num_ids, num_ids), np.int64)
    np.add.at(confusion, ids, joint)

    related = np.zeros((num_ids, num_ids), bool)
    for group in classes.instance_categories.values():
        related[np.ix_(group, group)] = True
    counted = (numbers > 1000) & np.isin(ids, list(classes.instance_sizes))
    ids, joint = ids[counted].astype(np.int64), joint[counted]
    hits = joint[np.arange(len(ids)), ids]
    instances = np.stack([ids, joint.sum(1), hits, (joint * related[ids]).sum(1)], 1)
    zones = np.zeros((num_ids, 2), np.int64)
    if border:
        truth = ids_of_instances(truth.astype(np.uint16))
        zones = border_counts(truth, prediction, classes, border)
    return Counts(confusion, instances, zones)


def border_counts(
    truth: np.ndarray, prediction: np.ndarray, classes: LabelTable, width: int
) -> np.ndarray:
    """(H,W) uint8 ids twice -> (ids,2) int64 intersection and union of border zones.

    Boundary IoU (Cheng et al., CVPR 2021, eq. 1): of a mask only the pixels within `width` of its
    contour count, distance by rows or columns; the image's edge is contour. Ignored truth is
    ignored in the prediction too, so that it cuts both contours alike.
    """
    table = np.full(256, IGNORED, np.uint8)  # ids may be any number, train ids are below OUTSIDE
    table[classes.ids] = np.arange(classes.num_classes)
    truth = cv2.LUT(truth, table)
    ignored = (truth == IGNORED) * np.uint8(IGNORED)
    maps = [truth, cv2.LUT(prediction, table) | ignored]
    square = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    outside = {"borderType": cv2.BORDER_CONSTANT, "borderValue": OUTSIDE}
    # Another label within the square makes its largest and smallest number differ.
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
