"""Parts of the panoptic task: a prediction is train ids and segments."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from evaluation import semantic
from evaluation.counts import Counts
from evaluation.grouping import group
from evaluation.metrics import Scores, compute_scores, json_safe
from evaluation.panoptic_files import categories_of, of_instances
from evaluation.panoptic_quality import (
    PanopticCounts,
    Segments,
    count_segments,
    fates_table,
    panoptic_results,
    panoptic_table,
)
from evaluation.semantic import Counted, Sample
from model.ops.upsample_argmax import upsample_argmax
from utils.data.label_table import IGNORE, LabelTable
from utils.training.distributed import World, gather_images

MAPS = 3  # after the logits: heat of centers, offset y and x


class Prediction(NamedTuple):
    """Train ids and segments, which may differ: small areas and pixels without a center are void
    in the segments only."""

    train_ids: np.ndarray  # (H,W) uint8
    segments: Segments


@dataclass(frozen=True)
class SegmentCounts(Counts):
    """Counts of pixels and of segments."""

    segments: PanopticCounts


@dataclass(frozen=True)
class PanopticScores(Scores):
    """Scores of the train ids, and of the segments: see panoptic_results."""

    panoptic: dict[str, Any]
    tables: str

    @property
    def best(self) -> float:
        return self.panoptic["All"]["pq"]

    @property
    def curve(self) -> dict[str, float]:
        return {"miou": self.miou, "pq": self.best}

    def plain(self) -> dict[str, object]:
        scores = {"pq": self.best, "panoptic": self.panoptic}
        return super().plain() | json_safe(scores)

    def table(self) -> str:
        return f"{super().table()}\n\n{self.tables}"


def logits(outputs: torch.Tensor) -> torch.Tensor:
    return outputs[:, :-MAPS]


def finish(outputs: np.ndarray, size: tuple[int, int], classes: LabelTable) -> Prediction:
    """(K+3,h,w) float32 outputs -> prediction of an image of `size`."""
    train_ids = upsample_argmax(torch.from_numpy(outputs[None, :-MAPS]), size)[0].numpy()
    return grouped(train_ids, outputs[-MAPS:], classes)


def grouped(train_ids: np.ndarray, maps: np.ndarray, classes: LabelTable) -> Prediction:
    """(H,W) train ids, (3,h,w) heat and offset -> prediction."""
    how = {"things": classes.is_thing, "stuff_area": classes.stuff_area}
    return Prediction(train_ids, group(train_ids, maps[0], maps[1:], **how))


def truth(sample: Sample, classes: LabelTable) -> Prediction:
    return Prediction(sample["label"], of_instances(sample["instance"], classes))


def count(
    sample: Sample, prediction: Prediction, classes: LabelTable, *, border: int = 0
) -> SegmentCounts:
    pixels = semantic.count(sample, prediction.train_ids, classes, border=border)
    segments = truth(sample, classes).segments
    counts = count_segments(segments, prediction.segments, classes.num_classes)
    return SegmentCounts(**vars(pixels), segments=counts)


def total(counted: Counted, classes: LabelTable, world: World) -> SegmentCounts:
    """Adds up the images in their order, so that sums of IoUs round the same in any number of
    processes."""
    pixels = semantic.total(counted, classes, world)
    rows = gather_images({i: x.segments for i, x in counted.images.items()}, world)
    return SegmentCounts(**vars(pixels), segments=PanopticCounts.total(rows))


def scores(
    counts: SegmentCounts, classes: LabelTable, *, loss: float | None = None
) -> PanopticScores:
    categories = categories_of(classes)
    results = panoptic_results(counts.segments, categories)
    tables = [panoptic_table(results, categories), fates_table(counts.segments, categories)]
    pixels = vars(compute_scores(counts, classes, loss=loss))
    return PanopticScores(**pixels, panoptic=results, tables="\n\n".join(tables))


def paint(prediction: Prediction, classes: LabelTable) -> np.ndarray:
    """Colours of the segments' classes, void black, with white lines around things."""
    numbers, categories = prediction.segments.numbers, prediction.segments.categories
    table = np.full(1 << 16, IGNORE, np.uint8)
    table[1 : 1 + len(categories)] = categories
    picture = classes.draw(cv2.LUT(numbers, table))
    things = classes.is_thing[categories]
    table = np.zeros(1 << 16, np.uint16)
    table[1 : 1 + len(categories)] = np.where(things, np.arange(1, 1 + len(categories)), 0)
    things = cv2.LUT(numbers, table)
    edge = cv2.morphologyEx(things, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    picture[edge] = 255
    return picture
