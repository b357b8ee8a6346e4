"""Predict every image of a data set and score the predictions."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from datasets import Dataset
from evaluation.counts import Counts, count_pixels
from evaluation.inference import Predictor
from evaluation.metrics import Scores, compute_scores
from model.ops.upsample_argmax import upsample_argmax
from model.ops.upsample_cross_entropy import upsample_cross_entropy
from utils.distributed import StopRequest, World, gather_over_ranks, sum_over_ranks
from utils.labels import LabelTable
from utils.loader import read_ahead
from utils.progress import progress

OnImage = Callable[[str, Counts, np.ndarray], None]


def evaluate(
    model: nn.Module,
    dataset: Dataset,
    *,
    world: World,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    crop: tuple[int, int] | None = None,
    stride: tuple[int, int] | None = None,
    class_weights: torch.Tensor | None = None,
    amp: torch.dtype | None = None,
    workers: int = 2,
    border: int = 0,
    on_image: OnImage | None = None,
    stop: StopRequest | None = None,
) -> Scores | None:
    """Scores over the whole split, at the labels' own size; every image counts exactly once.

    `model`, on world.device, is left as it is: a copy in evaluation mode predicts. Processes take
    every size-th image, add up integers and gather rows of instances, so any number of them gives
    the same scores. `workers` threads read ahead, as many count and call on_image(name, counts,
    labels) with an image's counts and its (H,W) uint8 predicted train ids, in any order.
    scales, flip, crop, stride: predict's; an image too large for the memory is seen in windows.
    amp: what autocast computes in, None for float32. border: width in pixels of the zone for
    boundary IoU, 0 for none. stop: looked at after every image; None comes back where it was asked.
    """
    classes, device = dataset.classes, world.device
    predictor = Predictor(
        model, device=device, amp=amp, scales=scales, flip=flip, crop=crop, stride=stride
    )
    losses = torch.zeros(2, dtype=torch.float64, device=device)
    indices, ahead = range(world.rank, len(dataset), world.size), workers + 2

    def predicted() -> Iterator[tuple[dict[str, Any], np.ndarray]]:
        samples = read_ahead(
            dataset.__getitem__,
            indices,
            workers=workers,
            ahead=ahead,
            describe=lambda index: f"image {dataset.names[index]}",
        )
        for sample in samples:
            truth, size = torch.tensor(sample["label"])[None].to(device), sample["label"].shape
            logits = predictor.logits(sample["image"], size=size)
            sums = upsample_cross_entropy(logits, truth, class_weights=class_weights)
            losses.add_(torch.stack(sums))
            yield sample, upsample_argmax(logits, size)[0].cpu().numpy()

    def count(prediction: tuple[dict[str, Any], np.ndarray]) -> Counts:
        sample, labels = prediction
        ids = classes.to_ids(labels)
        counts = count_pixels(truth_of(sample, classes), ids, classes, border=border)
        if on_image is not None:
            on_image(sample["name"], counts, labels)
        return counts

    counted: dict[int, Counts] = {}
    with progress(len(indices), unit="image", label="evaluate", enabled=world.is_main) as bar:
        results = read_ahead(count, predicted(), workers=workers, ahead=ahead)
        for index, counts in zip(indices, results, strict=True):
            counted[index] = counts
            bar.update()
            if stop is not None and stop.signal is not None:
                break
    if stop is not None and stop.requested():
        return None
    loss_sum, weight_sum = sum_over_ranks(losses, world).tolist()
    loss = loss_sum / weight_sum if weight_sum else 0.0
    return compute_scores(total_over_ranks(counted, classes, world), classes, loss=loss)


def total_over_ranks(counted: dict[int, Counts], classes: LabelTable, world: World) -> Counts:
    """Counts by image index, in every process its own -> those of all images, in their order."""
    sums = np.zeros((classes.num_ids, classes.num_ids + 2), np.int64)
    for counts in counted.values():
        sums += np.concatenate([counts.confusion, counts.border], 1)
    sums = sum_over_ranks(torch.from_numpy(sums).to(world.device), world).cpu().numpy()
    rows: dict[int, np.ndarray] = {}
    for part in gather_over_ranks({i: counts.instances for i, counts in counted.items()}, world):
        rows |= part
    instances = np.concatenate([rows[index] for index in sorted(rows)])
    return Counts(sums[:, : classes.num_ids], instances, sums[:, classes.num_ids :])


def truth_of(sample: dict, classes: LabelTable) -> np.ndarray:
    """(H,W) instance ids, or ids where a set has no instances."""
    if "instance" in sample:
        return sample["instance"]
    return classes.to_ids(sample["label"])
