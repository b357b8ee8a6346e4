"""Train every architecture on four crops of CamVid until it knows them; docs/models.md shows it.

    python benchmarks/overfit.py
    python benchmarks/overfit.py --models fpn unet --most 500

A sign that gradients reach everything: it must end with less than 0.3 of the first loss and more
than 80 % of the pixels right. ResNet-18 at stride 16 or VGG-16 with BatchNorm, random weights,
AdamW at 1e-3, no dropout, BatchNorm with statistics of the batch; crops of 128x256, or larger where
the architecture needs it.
"""

import sys
import time
from pathlib import Path

if __name__ == "__main__":  # else it would replace another folder
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

import torch
from torch import nn

from benchmarks import measure
from benchmarks.bench_step import AMP, DEVICE
from datasets import SegmentationDataset, build_dataset
from model import MODELS, build_model, encoders_of, option_names
from model.losses import SegmentationLoss
from model.normalize import FromPixels
from model.ops.upsample_argmax import upsample_argmax
from utils.base.environment import keep_memory
from utils.base.errors import UserError, run_command
from utils.base.paths import REPOSITORY
from utils.data.batches import Batch
from utils.data.label_table import IGNORE
from utils.training.optim import build_optimizer
from utils.training.step import training_step

CROP, IMAGES, LOSS, ACCURACY = (128, 256), 4, 0.3, 0.8


def network(name: str, num_classes: int) -> nn.Module:
    """The smallest variant that learns from random weights: VGG-16 only with BatchNorm."""
    options = {}
    if "backbone" in option_names(name):
        own = encoders_of(name)
        options["backbone"] = next(x for x in ("resnet18", "vgg16_bn") if x in own)
    if "output_stride" in option_names(name):
        options["output_stride"] = 16
    model = build_model(name, num_classes=num_classes, **options)
    for module in model.modules():
        if isinstance(module, (nn.Dropout, nn.Dropout2d)):
            module.p = 0.0
    return model.to(DEVICE, memory_format=torch.channels_last).train()


def crops(dataset: SegmentationDataset, crop: tuple[int, int]) -> Batch:
    """The middle of four images, spread over the data set."""
    samples = [dataset[number * len(dataset) // IMAGES] for number in range(IMAGES)]
    places = [
        tuple(
            slice((full - side) // 2, (full - side) // 2 + side)
            for full, side in zip(sample["label"].shape, crop, strict=True)
        )
        for sample in samples
    ]
    images, labels = (
        torch.stack([torch.tensor(x[key][at]) for x, at in zip(samples, places, strict=True)])
        for key in ("image", "label")
    )
    return Batch(images, {"label": labels}, []).to(DEVICE)


def overfit(name: str, dataset: SegmentationDataset, most: int) -> dict:
    """Train until both bounds are passed, at most `most` steps; the row of the table."""
    torch.manual_seed(0)
    least = getattr(MODELS[name], "smallest_image", 1)
    crop = tuple(max(side, least) for side in CROP)
    batch = crops(dataset, crop)
    labels = batch.targets["label"]
    known = labels != IGNORE
    model, logits = network(name, dataset.classes.num_classes), []
    model.register_forward_hook(lambda _model, _images, outputs: logits.append(outputs["out"]))
    optimizer = build_optimizer(model, "adamw", base_lr=1e-3, weight_decay=0.01)
    trained, criterion, losses = FromPixels(model), SegmentationLoss(), []
    begin = time.perf_counter()
    for _ in range(most):
        losses.append(float(training_step(trained, criterion, optimizer, [batch], amp=AMP)))
        right = upsample_argmax(logits.pop().detach().float(), crop) == labels
        accuracy = float(right[known].float().mean())
        if losses[-1] < LOSS * losses[0] and accuracy > ACCURACY:
            break
    else:
        what = f"{name}: loss {losses[-1]:.3f} of {losses[0]:.3f}, accuracy {accuracy:.3f}"
        raise UserError(f"overfit.py: {what}. Look for gradients that do not arrive")
    return {
        "model": name, "crop": list(crop), "steps": len(losses),
        "seconds": round(time.perf_counter() - begin, 1),
        "first_loss": round(losses[0], 3), "last_loss": round(losses[-1], 3),
        "accuracy": round(accuracy, 3),
    }  # fmt: skip


def main() -> None:
    given = measure.options(
        __doc__, models=measure.SEMANTIC, most=300, dataset="camvid",
        root=REPOSITORY / "data" / "camvid", results=measure.RESULTS,
    )  # fmt: skip
    keep_memory()
    dataset, rows = build_dataset(given.dataset, given.root, "train"), []
    for name in given.models:
        rows.append(overfit(name, dataset, given.most))
        measure.record(given.results, "overfit", rows)


if __name__ == "__main__":
    run_command(main)
