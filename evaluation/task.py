"""Kinds of segmentation: the parts of train.py, evaluate and predict.py that differ between them.

The `task` attribute of a model class is a key of TASKS.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from evaluation.counts import Counts, count_pixels
from evaluation.inference import to_device
from evaluation.metrics import Scores, compute_scores
from evaluation.visualize import overlay, save_as_ids
from model.losses import SegmentationLoss
from model.ops.upsample_argmax import upsample_argmax
from model.ops.upsample_cross_entropy import upsample_cross_entropy
from utils.data.label_table import LabelTable
from utils.training.distributed import World, gather_over_ranks, sum_over_ranks

Sample = dict[str, Any]  # an item of a Dataset


@dataclass(frozen=True)
class Task:
    """One kind of segmentation; the shapes in the comments are those of "semantic"."""

    planes: tuple[str, ...]  # keys of a sample, besides its image, that the criterion needs
    # Options -> criterion; criterion(outputs, targets) returns (loss_sum, weight_sum).
    criterion: Callable[..., nn.Module]
    # (1,K,h,w) logits, sample, class weights -> (2,) loss_sum and weight_sum of evaluation.
    losses: Callable[[torch.Tensor, Sample, torch.Tensor | None], torch.Tensor]
    # (1,K,h,w) logits, size -> the prediction, (H,W) uint8 train ids, on the logits' device.
    predict: Callable[[torch.Tensor, tuple[int, int]], torch.Tensor]
    # Sample, prediction, label table, border= -> counts of one image.
    count: Callable[..., Counts]
    # This process's counts by image index -> counts of all images of all processes.
    total: Callable[[dict[int, Counts], LabelTable, World], Counts]
    scores: Callable[..., Scores]  # counts of all images, label table, loss= -> scores
    # (H,W,3) image, prediction, label table -> (H,W,3) picture.
    draw: Callable[[np.ndarray, np.ndarray, LabelTable], np.ndarray]
    save: Callable[..., None]  # path, prediction, label table: writes the test server's format


def semantic_losses(
    logits: torch.Tensor, sample: Sample, class_weights: torch.Tensor | None
) -> torch.Tensor:
    truth = to_device(sample["label"], logits.device)[None]
    return torch.stack(upsample_cross_entropy(logits, truth, class_weights=class_weights))


def semantic_predict(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return upsample_argmax(logits, size)[0]


def semantic_count(
    sample: Sample, train_ids: np.ndarray, classes: LabelTable, *, border: int = 0
) -> Counts:
    """Count against instance ids, or label ids if the data set has no instances."""
    truth = sample["instance"] if "instance" in sample else classes.to_ids(sample["label"])
    return count_pixels(truth, classes.to_ids(train_ids), classes, border=border)


def semantic_total(counted: dict[int, Counts], classes: LabelTable, world: World) -> Counts:
    """Sum the counts of all processes; gather rows of instances in the order of the images."""
    sums = np.zeros((classes.num_ids, classes.num_ids + 2), np.int64)
    for counts in counted.values():
        sums += np.concatenate([counts.confusion, counts.border], 1)
    sums = sum_over_ranks(torch.from_numpy(sums).to(world.device), world).cpu().numpy()
    rows: dict[int, np.ndarray] = {}
    for part in gather_over_ranks({i: counts.instances for i, counts in counted.items()}, world):
        rows |= part
    instances = np.concatenate([rows[index] for index in sorted(rows)])
    return Counts(sums[:, : classes.num_ids], instances, sums[:, classes.num_ids :])


TASKS = {
    "semantic": Task(
        planes=("label",),
        criterion=SegmentationLoss,
        losses=semantic_losses,
        predict=semantic_predict,
        count=semantic_count,
        total=semantic_total,
        scores=compute_scores,
        draw=overlay,
        save=save_as_ids,
    ),
}
