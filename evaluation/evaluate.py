"""Predict every image of a data set and score the predictions."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from evaluation import semantic
from evaluation.counts import Counts
from evaluation.inference import Predictor
from evaluation.metrics import Scores
from evaluation.task import TASKS, Prediction, Sample, Task
from evaluation.transfer import to_host
from utils.base.progress import progress
from utils.base.threads import read_ahead
from utils.data.dataset import Dataset
from utils.training.distributed import StopRequest, World, sum_over_ranks

OnImage = Callable[[Sample, Counts, Prediction], None]  # an image, its counts, its prediction
OnLogits = Callable[[Sample, torch.Tensor], None]  # an image and the logits of its classes


def evaluate(
    model: nn.Module,
    dataset: Dataset,
    *,
    world: World,
    task: Task = TASKS["semantic"],
    class_weights: torch.Tensor | None = None,
    amp: torch.dtype | None = None,
    workers: int = 2,
    border: int = 0,
    on_image: OnImage | None = None,
    on_logits: OnLogits | None = None,
    bar: tqdm | None = None,
    stop: StopRequest | None = None,
    **options: Any,
) -> Scores | None:
    """Scores over the whole split, at the size of the labels; every image counts exactly once.

    `model`, on world.device, does not change: a copy in evaluation mode predicts. Each process
    predicts every size-th image; the processes add up integers, or numbers in the order of the
    images, so the scores do not depend on their number. `workers` threads read ahead; as many
    threads count and call on_image(sample, counts, prediction), in any order. on_logits(sample,
    logits) is called in order, with logits on the device. amp: dtype of autocast, None for float32.
    border: width in pixels of the zone for boundary IoU, 0 for none. bar: the caller's progress
    line, updated instead of an own one. stop: checked after every image; the result is None if a
    stop was requested. options: those of predict_logits. UserError if an image does not fit into
    memory.
    """
    classes = dataset.classes
    own = {"task": task, "classes": classes, "amp": amp}
    predictor = Predictor(model, device=world.device, **own, **options)
    losses = torch.zeros(2, dtype=torch.float64, device=world.device)
    indices = range(world.rank, len(dataset), world.size)
    threads = {"workers": workers, "ahead": workers + 2}

    def predicted() -> Iterator[tuple[Sample, Callable[[], np.ndarray]]]:
        samples = read_ahead(
            dataset.__getitem__, indices, describe=lambda i: f"image {dataset.names[i]}", **threads
        )
        for sample in samples:
            size = sample["label"].shape
            outputs = predictor.logits(sample["image"], size=size)
            logits = task.logits(outputs)
            losses.add_(semantic.losses(logits, sample, class_weights))
            if on_logits is not None:
                on_logits(sample, logits)
            yield sample, to_host(task.predict(outputs, size))

    def count(item: tuple[Sample, Callable[[], np.ndarray]]) -> Counts:
        sample, found = item[0], item[1]()  # this thread waits, a GPU goes on predicting
        prediction = task.finish(found, sample["label"].shape, classes)
        counts = task.count(sample, prediction, classes, border=border)
        if on_image is not None:
            on_image(sample, counts, prediction)
        return counts

    counted = semantic.Counted(classes)
    line = {"unit": "image", "label": "evaluate", "enabled": world.is_main}
    with nullcontext(bar) if bar is not None else progress(len(indices), **line) as bar:
        results = read_ahead(count, predicted(), **threads)
        for index, counts in zip(indices, results, strict=True):
            counted.add(index, counts)
            bar.update()
            if stop is not None and stop.signal is not None:
                break
    if stop is not None and stop.requested():
        return None
    loss_sum, weight_sum = sum_over_ranks(losses, world).tolist()
    loss = loss_sum / weight_sum if weight_sum else 0.0
    return task.scores(task.total(counted, classes, world), classes, loss=loss)
