"""Predict every image of a data set and score the predictions."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from datasets import SegmentationDataset, instance_to_label_ids
from evaluation.inference import predict_logits
from evaluation.metrics import Scores, confusion_matrix, scores_from_confusion
from model.ops.upsample_argmax import upsample_argmax
from model.ops.upsample_cross_entropy import upsample_cross_entropy
from utils.distributed import World, sum_over_ranks
from utils.labels import LabelTable
from utils.loader import read_ahead
from utils.logger import progress

OnImage = Callable[[str, np.ndarray, np.ndarray], None]


def evaluate(
    model: nn.Module,
    dataset: SegmentationDataset,
    *,
    world: World,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    class_weights: torch.Tensor | None = None,
    autocast: bool = False,
    workers: int = 2,
    on_image: OnImage | None = None,
) -> Scores:
    """Scores over the whole split, at the labels' own size; every image counts exactly once.

    `model` must be in evaluation mode, on world.device. Processes take every size-th image and add
    up integers. on_image(name, counts, labels) gets each image's (ids,ids) confusion matrix and
    its (H,W) uint8 predicted train ids, in this process.
    """
    classes, device = dataset.classes, world.device
    confusion = np.zeros((classes.num_ids, classes.num_ids), np.int64)
    losses = torch.zeros(2, dtype=torch.float64)
    indices = range(world.rank, len(dataset), world.size)
    with progress(len(indices), unit="image", label="evaluate", enabled=world.is_main) as bar:
        for sample in read_ahead(dataset.__getitem__, indices, workers=workers):
            images = torch.from_numpy(sample["image"])[None].to(device)
            truth = torch.from_numpy(sample["label"])[None].to(device)
            size = sample["label"].shape
            with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                logits = predict_logits(model, images, size=size, scales=scales, flip=flip)
            sums = upsample_cross_entropy(logits, truth, class_weights=class_weights)
            losses += torch.stack(sums).double().cpu()
            labels = upsample_argmax(logits, size)[0].cpu().numpy()
            counts = confusion_matrix(
                true_ids(sample, classes), classes.ids[labels], classes.num_ids
            )
            confusion += counts
            if on_image is not None:
                on_image(sample["name"], counts, labels)
            bar.update()
    confusion = sum_over_ranks(torch.from_numpy(confusion).to(device), world).cpu().numpy()
    loss_sum, weight_sum = sum_over_ranks(losses.to(device), world).tolist()
    return scores_from_confusion(
        confusion,
        names=classes.names,
        ids=classes.ids.tolist(),
        categories=classes.categories,
        loss=loss_sum / weight_sum if weight_sum else 0.0,
    )


def true_ids(sample: dict, classes: LabelTable) -> np.ndarray:
    """(H,W) uint8 truth in the data set's own ids; without id files ignored pixels get the last."""
    if "instance" in sample:
        return instance_to_label_ids(sample["instance"])
    to_ids = np.full(256, classes.num_ids - 1, np.uint8)
    to_ids[: classes.num_classes] = classes.ids
    return to_ids[sample["label"]]
