"""COCO's average precision of boxes and masks, by pycocotools (Lin et al., ECCV 2014)."""

from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from evaluation.panoptic_quality import Segments

Objects = list[dict[str, Any]]  # annotations of COCO without image_id and id
SIDES = {"height": 0, "width": 0}  # not used: run-length codes have their own
KINDS = {"boxes": "bbox", "masks": "segm"}


def encode(mask: np.ndarray) -> dict[str, Any]:
    """(H,W) uint8 -> COCO's run-length code."""
    return run_lengths.encode(np.asfortranarray(mask))


def true_objects(segments: Segments, is_thing: np.ndarray) -> Objects:
    """Things among true segments; is_thing: (K,) bool."""
    found = []
    for number in np.flatnonzero(is_thing[segments.categories]):
        code = encode((segments.numbers == number + 1).astype(np.uint8))
        found.append({
            "category_id": int(segments.categories[number]), "segmentation": code,
            "bbox": run_lengths.toBbox(code).tolist(), "area": float(run_lengths.area(code)),
            "iscrowd": int(segments.crowd[number]),
        })  # fmt: skip
    return found


def found_objects(
    boxes: np.ndarray,
    classes: np.ndarray,
    scores: np.ndarray,
    masks: np.ndarray,
    size: tuple[int, int],
) -> Objects:
    """(n,4) left, top, right, bottom in pixels, (n,) classes and scores, (n,m,m) logits in the
    boxes -> the masks where the resized logits are above 0."""
    found = []
    edges = np.rint(boxes).astype(int).clip(0, [size[1], size[0]] * 2)
    for number, (left, top, right, bottom) in enumerate(edges.tolist()):
        whole = np.zeros(size, np.uint8)
        if right > left and bottom > top:
            inside = cv2.resize(masks[number], (right - left, bottom - top))
            whole[top:bottom, left:right] = inside > 0
        x, y, end, low = boxes[number].tolist()
        found.append({
            "category_id": int(classes[number]), "score": float(scores[number]),
            "segmentation": encode(whole), "bbox": [x, y, end - x, low - y],
        })  # fmt: skip
    return found


def average_precision(
    truth: list[Objects], found: list[Objects], categories: dict[int, str]
) -> dict[str, Any]:
    """Objects of each image -> {"boxes" or "masks": {"ap", "ap50", "ap75", "per_class": AP by
    name}}, nan without true objects."""
    with redirect_stdout(StringIO()):  # it prints its progress
        own = dataset(truth, categories)
        own.createIndex()
        return {name: evaluated(own, found, kind, categories) for name, kind in KINDS.items()}


def dataset(images: list[Objects], categories: dict[int, str]) -> COCO:
    coco, rows = COCO(), listed(images)
    for number, row in enumerate(rows, 1):
        row["id"] = number
    coco.dataset = {
        "info": {}, "images": [{"id": number, **SIDES} for number in range(len(images))],
        "annotations": rows, "categories": [{"id": x, "name": y} for x, y in categories.items()],
    }  # fmt: skip
    return coco


def listed(images: list[Objects]) -> Objects:
    return [{**x, "image_id": number} for number, own in enumerate(images) for x in own]


def evaluated(
    truth: COCO, found: list[Objects], kind: str, categories: dict[int, str]
) -> dict[str, Any]:
    other = "segmentation" if kind == "bbox" else "bbox"
    rows = [{k: v for k, v in row.items() if k != other} for row in listed(found)]
    scores = COCOeval(truth, truth.loadRes(rows) if rows else COCO(), kind)
    if not rows:
        scores.params.imgIds = [*truth.imgs]
    scores.evaluate()
    scores.accumulate()
    precision = scores.eval["precision"][:, :, :, 0, -1]  # IoU, recall, class; -1: no such object
    places = {number: place for place, number in enumerate(scores.params.catIds)}
    return {
        "ap": mean(precision), "ap50": mean(precision[0]), "ap75": mean(precision[5]),
        "per_class": {y: mean(precision[:, :, places[x]]) for x, y in categories.items()},
    }  # fmt: skip


def mean(precision: np.ndarray) -> float:
    known = precision[precision > -1]
    return float(known.mean()) if known.size else float("nan")


def precision_table(results: dict[str, Any]) -> str:
    """In per cent; - where there is no object."""

    def row(name: str, values: list[float]) -> str:
        return f"{name:14s}|" + "".join(
            f"{'-':>8}" if np.isnan(x) else f"{100 * x:>8.1f}" for x in values
        )

    names = results["boxes"]["per_class"]
    lines = [row(x, [results[kind]["per_class"][x] for kind in KINDS]) for x in names]
    means = [row(x.upper(), [results[kind][x] for kind in KINDS]) for x in ("ap", "ap50", "ap75")]
    title = f"{'Detected':14s}|{'box AP':>8}{'mask AP':>8}"
    return "\n".join([title, *lines, "-" * len(title), *means])
