"""Panoptic quality (Kirillov et al., CVPR 2019), counted as cityscapesScripts and COCO count it.

Also counts what became of the true segments: matched, split, merged, missed. Needs only NumPy,
OpenCV and cityscapesscripts.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.metrics import ratio
from utils.data.class_weights import histogram

IOU, TP, FP, FN = range(4)  # columns of PanopticCounts.quality
FATES = ("matched", "split", "merged", "missed")
LIMITS = (32**2, 96**2)  # pixels: COCO's small, medium and large
SIZES = ("small", "medium", "large")


@dataclass(frozen=True)
class Category:
    """A class of segments; `id` stands for it in files."""

    id: int
    name: str
    thing: bool


@dataclass(frozen=True)
class Segments:
    """The n segments of an image, true or predicted."""

    numbers: np.ndarray  # (H,W) uint16: 0 is void, i + 1 is segment i
    categories: np.ndarray  # (n,) int64: places in a list of categories
    crowd: np.ndarray  # (n,) bool: true segments of several things; False for predictions


@dataclass(frozen=True)
class PanopticCounts:
    """Counts of one image, or of many images together."""

    quality: np.ndarray  # (K,4) float64: sum of the IoUs of matched segments, TP, FP, FN
    fates: np.ndarray  # (K,3,4) int64: true segments of each size and fate

    @staticmethod
    def total(parts: Iterable["PanopticCounts"]) -> "PanopticCounts":
        qualities, fates = zip(*((part.quality, part.fates) for part in parts), strict=True)
        return PanopticCounts(sum(qualities), sum(fates))


def count_segments(truth: Segments, predicted: Segments, categories: int) -> PanopticCounts:
    """Counts of one image with `categories` categories.

    A predicted segment matches a true one of its category if their IoU, without the void pixels of
    the prediction, is above 0.5; at most one does. Crowds match nothing. A segment without a match
    is a false positive unless more than half of it lies on void or on the crowd of its category.
    """
    pixels = joint_pixels(truth, predicted)
    void, shared = pixels[0, 1:], pixels[1:, 1:]
    true_areas, areas = pixels[1:].sum(1), pixels[:, 1:].sum(0)
    same = truth.categories[:, None] == predicted.categories
    iou = shared / np.maximum(true_areas[:, None] + areas - void - shared, 1)
    matched = same & ~truth.crowd[:, None] & (iou > 0.5)

    quality = np.zeros((categories, 4))
    rows, places = matched.nonzero()
    np.add.at(quality[:, IOU], truth.categories[rows], iou[rows, places])
    np.add.at(quality[:, TP], truth.categories[rows], 1)
    np.add.at(quality[:, FN], truth.categories[~matched.any(1) & ~truth.crowd], 1)
    crowd = np.zeros((categories, len(areas)), np.int64)  # the last crowd of a category counts
    crowd[truth.categories[truth.crowd]] = shared[truth.crowd]
    ignored = void + crowd[predicted.categories, np.arange(len(areas))]
    np.add.at(quality[:, FP], predicted.categories[~matched.any(0) & (2 * ignored <= areas)], 1)

    fates = np.zeros((categories, len(SIZES), len(FATES)), np.int64)
    real = np.flatnonzero(~truth.crowd)
    fate = fates_of(matched, same, shared, true_areas, areas)[real]
    np.add.at(fates, (truth.categories[real], np.digitize(true_areas[real], LIMITS), fate), 1)
    return PanopticCounts(quality, fates)


def joint_pixels(truth: Segments, predicted: Segments) -> np.ndarray:
    """(t+1,p+1) int64: pixels of each pair of segments; the first row and column are void."""
    rows, columns = (len(segments.categories) + 1 for segments in (truth, predicted))
    if rows * columns <= 1 << 16:  # seldom more
        cells = truth.numbers * np.uint16(columns)
        return histogram(cells + predicted.numbers)[: rows * columns].reshape(rows, columns)
    cells = truth.numbers.astype(np.int64) * columns + predicted.numbers
    return np.bincount(cells.ravel(), minlength=rows * columns).reshape(rows, columns)


def fates_of(
    matched: np.ndarray, same: np.ndarray, shared: np.ndarray,
    true_areas: np.ndarray, areas: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """(t,p) bool, bool and pixels, (t,) and (p,) pixels -> (t,) places in FATES. Split: several
    predicted segments of its category lie mostly inside it and cover more than half of it. Merged:
    it lies mostly inside one that also holds most of another of its category."""
    pieces = shared * (same & (2 * shared > areas))
    split = ((pieces > 0).sum(1) > 1) & (2 * pieces.sum(1) > true_areas)
    held = same & (2 * shared > true_areas[:, None])
    merged = (held & (held.sum(0) > 1)).any(1)
    return np.select([matched.any(1), split, merged], [0, 1, 2], 3)


def panoptic_results(counts: PanopticCounts, categories: Sequence[Category]) -> dict[str, Any]:
    """PQ, SQ and RQ under the key names of the official JSON file. Means leave out categories
    without any segment; nan if there is no other."""
    iou, tp, fp, fn = counts.quality.T
    errors = tp + (fp + fn) / 2
    present = errors > 0
    values = [iou / np.maximum(errors, 0.5), iou / np.maximum(tp, 1), tp / np.maximum(errors, 0.5)]
    things = np.array([category.thing for category in categories])
    results: dict[str, Any] = {}
    for name, chosen in (
        ("All", present),
        ("Things", present & things),
        ("Stuff", present & ~things),
    ):
        n = int(chosen.sum())
        means = (ratio(float(value[chosen].sum()), n) for value in values)
        results[name] = {**dict(zip(("pq", "sq", "rq"), means, strict=True)), "n": n}
    rows = zip(categories, *(value.tolist() for value in values), strict=True)
    results["per_class"] = {x.id: {"pq": pq, "sq": sq, "rq": rq} for x, pq, sq, rq in rows}
    return results


def panoptic_table(results: dict[str, Any], categories: Sequence[Category]) -> str:
    """The official scorer's table, in per cent."""

    def row(name: str, scores: dict[str, float], end: str = "") -> str:
        cells = "  ".join(f"{100 * scores[key]:5.1f}" for key in ("pq", "sq", "rq"))
        return f"{name:14s}| {cells}{end}"

    each = results["per_class"]
    return "\n".join([
        f"{'Category':14s}|    PQ     SQ     RQ",
        *(row(x.name, each[x.id]) for x in sorted(categories, key=lambda x: x.id)),
        "-" * 41,
        f"{'':14s}|    PQ     SQ     RQ     N",
        *(row(x, results[x], f" {results[x]['n']:5d}") for x in ("All", "Things", "Stuff")),
    ])  # fmt: skip


def fates_table(counts: PanopticCounts, categories: Sequence[Category]) -> str:
    """Numbers of true segments by fate, of each category and of each size."""
    title = f"{'True segments':14s}|{''.join(f'{fate:>9}' for fate in FATES)}"
    rows = [(x.name, own.sum(0)) for x, own in zip(categories, counts.fates, strict=True)]
    rows = [(name, numbers) for name, numbers in rows if numbers.any()]
    sizes = zip(SIZES, counts.fates.sum(0), strict=True)
    lines = [f"{name:14s}|{''.join(f'{x:>9,}' for x in row)}" for name, row in (*rows, *sizes)]
    lines.insert(len(rows), "-" * len(title))
    return "\n".join([title, *lines])
