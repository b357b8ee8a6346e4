"""Parts of the semantic task: a prediction is (H,W) uint8 train ids."""

from typing import Any

import numpy as np
import torch

from evaluation.counts import Counts, count_pixels
from evaluation.transfer import to_device
from model.ops.upsample_cross_entropy import upsample_cross_entropy
from utils.data.label_table import LabelTable
from utils.training.distributed import World, gather_images, sum_over_ranks

Sample = dict[str, Any]  # an item of a Dataset


def losses(
    logits: torch.Tensor, sample: Sample, class_weights: torch.Tensor | None
) -> torch.Tensor:
    truth = to_device(sample["label"], logits.device)[None]
    return torch.stack(upsample_cross_entropy(logits, truth, class_weights=class_weights))


def count(sample: Sample, train_ids: np.ndarray, classes: LabelTable, *, border: int = 0) -> Counts:
    """Count against instance ids, or label ids if the data set has no instances."""
    truth = sample["instance"] if "instance" in sample else classes.to_ids(sample["label"])
    return count_pixels(truth, classes.to_ids(train_ids), classes, border=border)


def total(counted: dict[int, Counts], classes: LabelTable, world: World) -> Counts:
    """Sum the counts of all processes."""
    sums = np.zeros((classes.num_ids, classes.num_ids + 2), np.int64)
    for counts in counted.values():
        sums += np.concatenate([counts.confusion, counts.border], 1)
    sums = sum_over_ranks(torch.from_numpy(sums).to(world.device), world).cpu().numpy()
    rows = gather_images({i: counts.instances for i, counts in counted.items()}, world)
    instances = np.concatenate(rows)
    return Counts(sums[:, : classes.num_ids], instances, sums[:, classes.num_ids :])
