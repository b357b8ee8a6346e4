"""Parts of the task of panoptic networks that detect instances: average precision beside the
scores of the panoptic task."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from evaluation import panoptic
from evaluation.average_precision import (
    Objects,
    average_precision,
    found_objects,
    precision_table,
    true_objects,
)
from evaluation.metrics import json_safe
from evaluation.panoptic import PanopticScores, SegmentCounts
from evaluation.panoptic_quality import Segments
from evaluation.semantic import Counted, Sample
from model.panoptic.joining import INSTANCE, segment
from utils.data.class_weights import histogram
from utils.data.label_table import LabelTable
from utils.training.distributed import World, gather_images

LEAST = 0.6  # score of an instance that becomes a segment
OVERLAP = 0.5  # IoU of boxes of any class above which only the better one becomes a segment


class Prediction(NamedTuple):
    """See panoptic.Prediction; detections are arguments of found_objects."""

    train_ids: np.ndarray  # (H,W) uint8
    segments: Segments
    detections: dict[str, np.ndarray]


@dataclass(frozen=True)
class DetectionCounts(SegmentCounts):
    """Counts of pixels and segments, and the objects of images, which cannot be added up."""

    truth: list[Objects]
    found: list[Objects]


@dataclass(frozen=True)
class DetectionScores(PanopticScores):
    """Scores of the panoptic task, and average_precision."""

    detection: dict[str, Any]

    def plain(self) -> dict[str, object]:
        return super().plain() | {"detection": json_safe(self.detection)}

    def table(self) -> str:
        return f"{super().table()}\n\n{precision_table(self.detection)}"


def predict(outputs: dict[str, Any], size: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Outputs of UPSNet for one image -> its detections in pixels, "codes" and "train_ids" of
    `segment`, and "classes_of_codes"."""
    from torchvision.ops import nms  # takes seconds

    found = outputs["detections"][0]
    width_height = found["boxes"].new_tensor([size[1], size[0]])
    found = found | {"boxes": found["boxes"] * width_height.repeat(2)}
    kept = nms(found["boxes"], found["scores"], OVERLAP)  # best first
    kept = kept[found["scores"][kept] >= LEAST]
    chosen = {name: found[name][kept].float() for name in ("boxes", "masks")}
    classes, things = found["classes"][kept], outputs["is_thing"]
    logits = outputs["out"][0].float()
    codes, train_ids = segment(logits, **chosen, classes=classes, things=things, size=size)
    return found | {"codes": codes, "train_ids": train_ids, "classes_of_codes": classes}


def finish(found: dict[str, np.ndarray], size: tuple[int, int], classes: LabelTable) -> Prediction:
    """The result of `predict` on the host -> prediction; small areas of stuff become void."""
    detections = {name: found[name] for name in ("boxes", "classes", "scores", "masks")}
    codes = found["codes"].view(np.uint16)
    areas = histogram(codes)
    areas[:INSTANCE][areas[:INSTANCE] < classes.stuff_area] = 0
    areas[0] = 0
    present = np.flatnonzero(areas)
    table = np.zeros(1 << 16, np.uint16)
    table[present] = np.arange(1, len(present) + 1)
    stuff = present[present < INSTANCE] - 1
    categories = np.r_[stuff, found["classes_of_codes"][present[len(stuff) :] - INSTANCE]]
    crowd = np.zeros(len(categories), bool)
    segments = Segments(table[codes], categories.astype(np.int64), crowd)
    return Prediction(found["train_ids"], segments, detections | {"size": size})


def truth(sample: Sample, classes: LabelTable) -> Prediction:
    """Without detections."""
    return Prediction(*panoptic.truth(sample, classes), {})


def count(
    sample: Sample, prediction: Prediction, classes: LabelTable, *, border: int = 0
) -> DetectionCounts:
    counts = panoptic.count(sample, prediction, classes, border=border)
    true = true_objects(truth(sample, classes).segments, classes.is_thing)
    found = found_objects(**prediction.detections) if prediction.detections else []
    return DetectionCounts(**vars(counts), truth=[true], found=[found])


def total(counted: Counted, classes: LabelTable, world: World) -> DetectionCounts:
    counts = panoptic.total(counted, classes, world)
    rows = gather_images({i: (x.truth, x.found) for i, x in counted.images.items()}, world)
    true, found = ([x for part in parts for x in part] for parts in zip(*rows, strict=True))
    return DetectionCounts(**vars(counts), truth=true, found=found)


def scores(
    counts: DetectionCounts, classes: LabelTable, *, loss: float | None = None
) -> DetectionScores:
    categories = {int(x): classes.names[x] for x in np.flatnonzero(classes.is_thing)}
    detection = average_precision(counts.truth, counts.found, categories)
    return DetectionScores(**vars(panoptic.scores(counts, classes, loss=loss)), detection=detection)
