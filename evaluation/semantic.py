"""Parts of the semantic task: a prediction is (H,W) uint8 train ids."""

from dataclasses import replace
from threading import Lock
from typing import Any

import numpy as np
import torch

from evaluation.counts import Counts, count_pixels
from evaluation.transfer import to_device
from model.ops.upsample_cross_entropy import upsample_cross_entropy
from utils.data.label_table import LabelTable
from utils.training.distributed import World, gather_images, sum_over_ranks

Sample = dict[str, Any]  # an item of a Dataset
NONE = np.empty((0, 0), np.int64)


def losses(
    logits: torch.Tensor, sample: Sample, class_weights: torch.Tensor | None
) -> torch.Tensor:
    truth = to_device(sample["label"], logits.device)[None]
    return torch.stack(upsample_cross_entropy(logits, truth, class_weights=class_weights))


def count(sample: Sample, train_ids: np.ndarray, classes: LabelTable, *, border: int = 0) -> Counts:
    """Count against instance ids, or label ids if the data set has no instances."""
    truth = sample["instance"] if "instance" in sample else classes.to_ids(sample["label"])
    return count_pixels(truth, classes.to_ids(train_ids), classes, border=border)


class Counted:
    """Counts of a process's images: pixels added up, so that memory does not grow with the images,
    the rest by index of the image. Threads may add at the same time."""

    def __init__(self, classes: LabelTable) -> None:
        self.pixels = np.zeros((classes.num_ids, classes.num_ids + 2), np.int64)
        self.images: dict[int, Counts] = {}
        self.lock = Lock()

    def add(self, index: int, counts: Counts) -> None:
        with self.lock:
            self.pixels += np.concatenate([counts.confusion, counts.border], 1)
            self.images[index] = replace(counts, confusion=NONE, border=NONE)


def total(counted: Counted, classes: LabelTable, world: World) -> Counts:
    """Sum the counts of all processes."""
    sums = torch.tensor(counted.pixels, device=world.device)
    sums = sum_over_ranks(sums, world).cpu().numpy()
    rows = gather_images({i: counts.instances for i, counts in counted.images.items()}, world)
    instances = np.concatenate(rows)
    return Counts(sums[:, : classes.num_ids], instances, sums[:, classes.num_ids :])
