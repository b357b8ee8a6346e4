"""Kinds of segmentation: the parts of train.py, evaluate and predict.py that differ between them.

The `task` attribute of a model class is a key of TASKS.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from evaluation import detected, panoptic, semantic
from evaluation.counts import Counts
from evaluation.metrics import Scores, compute_scores
from evaluation.panoptic_quality import Segments
from evaluation.semantic import Counted, Sample
from model.losses import PanopticDeepLabLoss, SegmentationLoss, UPSNetLoss
from model.ops.upsample_argmax import upsample_argmax
from utils.data.label_table import LabelTable
from utils.training.distributed import World

# semantic: (H,W) uint8 train ids; panoptic: a panoptic.Prediction or detected.Prediction
Prediction = Any


@dataclass(frozen=True)
class Task:
    """One kind of segmentation. Outputs: (1,C,h,w), all maps of a network, logits first; of a
    network that detects instances its dict."""

    measure: str  # the score that decides which checkpoint is the best
    # criterion(**options)(outputs, targets) returns (loss_sum, weight_sum). Its `planes` are those
    # of a training sample, besides the image, that it needs.
    criterion: type[nn.Module]
    logits: Callable[[Any], torch.Tensor]  # outputs -> those of the classes, (1,K,h,w)
    # Outputs, size -> what the host needs of an image, (...) or a dict, on the outputs' device.
    predict: Callable[[Any, tuple[int, int]], torch.Tensor | dict[str, torch.Tensor]]
    # That in arrays, size, label table -> prediction; runs in any thread.
    finish: Callable[[Any, tuple[int, int], LabelTable], Prediction]
    train_ids: Callable[[Prediction], np.ndarray]  # -> (H,W) uint8
    segments: Callable[[Prediction], Segments] | None  # None: semantic
    truth: Callable[[Sample, LabelTable], Prediction]  # what a perfect network would predict
    # Sample, prediction, label table, border= -> counts of one image.
    count: Callable[..., Counts]
    # This process's counts -> counts of all images of all processes.
    total: Callable[[Counted, LabelTable, World], Counts]
    scores: Callable[..., Scores]  # counts of all images, label table, loss= -> scores
    paint: Callable[[Prediction, LabelTable], np.ndarray]  # -> (H,W,3) uint8 RGB

    @property
    def instances(self) -> bool:
        """Whether samples need instance ids."""
        return self.segments is not None


TASKS = {
    "semantic": Task(
        measure="mIoU",
        criterion=SegmentationLoss,
        logits=lambda outputs: outputs,
        predict=lambda outputs, size: upsample_argmax(outputs, size)[0],
        finish=lambda train_ids, _size, _classes: train_ids,
        train_ids=lambda prediction: prediction,
        segments=None,
        truth=lambda sample, _classes: sample["label"],
        count=semantic.count,
        total=semantic.total,
        scores=compute_scores,
        paint=lambda train_ids, classes: classes.draw(train_ids),
    ),
    "panoptic": Task(
        measure="PQ",
        criterion=PanopticDeepLabLoss,
        logits=panoptic.logits,
        predict=lambda outputs, _size: outputs[0].float(),
        finish=panoptic.finish,
        train_ids=lambda prediction: prediction.train_ids,
        segments=lambda prediction: prediction.segments,
        truth=panoptic.truth,
        count=panoptic.count,
        total=panoptic.total,
        scores=panoptic.scores,
        paint=panoptic.paint,
    ),
    "panoptic_boxes": Task(
        measure="PQ",
        criterion=UPSNetLoss,
        logits=lambda outputs: outputs["out"],
        predict=detected.predict,
        finish=detected.finish,
        train_ids=lambda prediction: prediction.train_ids,
        segments=lambda prediction: prediction.segments,
        truth=detected.truth,
        count=detected.count,
        total=detected.total,
        scores=detected.scores,
        paint=panoptic.paint,
    ),
}
