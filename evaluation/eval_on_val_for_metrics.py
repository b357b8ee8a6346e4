"""Score a checkpoint on the val split and write its predictions for the official scorer.

    python evaluation/eval_on_val_for_metrics.py                       best checkpoint, newest run
    python evaluation/eval_on_val_for_metrics.py --checkpoint RUN
    python evaluation/eval_on_val_for_metrics.py --checkpoint model.pth --data_root /data/cityscapes

Writes, in training_logs/: model_eval_val_for_metrics/<img_id>_pred_label_img.png (label ids, full
size) and model_eval_val/<img_id>_overlayed.png, scores.json, confusion.png.
"""

import os
import shutil
import sys
from dataclasses import dataclass
from operator import le
from pathlib import Path
from typing import Literal

if __name__ == "__main__":  # run by path, Python looks for modules in evaluation/ first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from datasets import build_dataset, read_class_weights
from evaluation.counts import Counts
from evaluation.evaluate import evaluate
from evaluation.inference import load_model
from evaluation.visualize import overlay, save_png
from utils import distributed
from utils.config import DatasetName, check, parse, valid_scales
from utils.errors import UserError, run_command
from utils.files import (
    first_folder,
    make_folder,
    resolve_data_root,
    resolve_log_root,
    write_json,
)
from utils.plots import plot_confusion
from utils.run import find_checkpoint


@dataclass(frozen=True)
class EvalConfig:
    """Options of eval_on_val_for_metrics.py."""

    checkpoint: str | None = None
    """A run's name, its folder or a checkpoint file. Default: best checkpoint of the newest run."""
    log_root: Path | None = None
    """Folder of all runs, and of what is written here. Default: training_logs/."""
    dataset: DatasetName | None = None
    """Data set to score on. Default: the one the checkpoint was trained on."""
    data_root: Path | None = None
    """Folder of the data set. Default: the one the checkpoint was trained on."""
    split: Literal["val", "test"] = "val"
    """Part of the data set; test only where its labels are public (camvid)."""
    scales: tuple[float, ...] | None = None
    """Sizes, as factors, at which the model sees an image. Default: the run's --eval_scales."""
    flip: bool = False
    """Average with the mirrored image's prediction."""
    crop: tuple[int, int] | None = None
    """Height and width of sliding windows, whose logits are averaged. Default: whole images."""
    stride: tuple[int, int] | None = None
    """Steps of the windows down and to the right. Default: two thirds of --crop."""
    overlays: bool = True
    """Also write pictures of the predictions over the images."""
    boundary_width: int | None = None
    """Also compute boundary IoU, counting pixels this close to a border; Cheng et al. (2021) take
    0.5 % of the diagonal on Cityscapes: 11."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the network; auto takes bf16 on GPUs that have it, else fp32: as training."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes CUDA when there is a GPU."""
    workers: int = 2
    """Threads that read images, and as many that count and write; 0: all in the main thread."""

    def __post_init__(self) -> None:
        check(self, "workers", lambda workers: workers >= 0, "at least 0")
        check(self, "boundary_width", lambda width: width >= 1, "at least 1")
        check(self, "crop", lambda crop: min(crop) >= 32, "at least 32x32")
        check(
            self,
            "stride",
            lambda stride: min(stride) >= 1 and all(map(le, stride, self.crop or (0, 0))),
            "at least 1 and at most --crop",
        )
        check(self, "scales", valid_scales, "one or more factors between 0.01 and 100")


def evaluate_checkpoint(config: EvalConfig) -> None:
    world = distributed.start(config.device)
    log_root = resolve_log_root(config.log_root)
    path = find_checkpoint(config.checkpoint, log_root).resolve()
    model, state = load_model(path)
    trained = state["config"]
    dataset_name = config.dataset or trained["dataset"]
    root = config.data_root
    if root is None and dataset_name == trained["dataset"]:
        root = Path(trained["data_root"])
    root = resolve_data_root(dataset_name, root)
    dataset = build_dataset(dataset_name, root, config.split)
    if list(dataset.classes.names) != state["classes"]:
        raise UserError(
            f"{path}: trained on other classes than {dataset_name}'s. Use its own data set"
        )
    if not dataset.has_labels:
        raise UserError(f"{root}: the {config.split} split has no public labels. Use --split val")
    print(f"checkpoint {path} (step {state['step']})")
    print(f"on {len(dataset)} images of {root}, {dataset.source}")
    weights = None
    if trained["class_weights"] and config.split == "val":
        try:
            weights = read_class_weights(root, dataset.classes).to(world.device)
        except UserError:  # of a val split alone; only the loss needs them
            print("the loss is without class weights: this data set was not preprocessed")

    predictions = log_root / "model_eval_val_for_metrics"
    pictures = log_root / "model_eval_val"
    new_predictions, new_pictures = start_folder(predictions), start_folder(pictures)
    index = {name: number for number, name in enumerate(dataset.names)}

    def write(name: str, _counts: Counts, labels: np.ndarray) -> None:
        save_png(new_predictions / f"{name}_pred_label_img.png", dataset.classes.to_ids(labels))
        if config.overlays:
            image = dataset.image(index[name])
            save_png(
                new_pictures / f"{name}_overlayed.png", overlay(image, labels, dataset.classes)
            )

    scores = evaluate(
        model.to(world.device),
        dataset,
        world=world,
        scales=config.scales or trained["eval_scales"],
        flip=config.flip,
        crop=config.crop,
        stride=config.stride,
        class_weights=weights,
        amp=world.amp_dtype(config.precision),
        workers=config.workers,
        border=config.boundary_width or 0,
        on_image=write,
    )
    write_json(new_pictures / "scores.json", {"checkpoint": str(path), **scores.plain()})
    plot_confusion(scores.counts.confusion, dataset.classes, new_pictures / "confusion.png")
    swap_in(new_predictions, predictions)
    swap_in(new_pictures, pictures)
    print(scores.table())
    print(f"\npredictions: {predictions}\npictures and scores.json: {pictures}")
    truth = first_folder(root, "gtFine", "val")
    if truth.is_dir():  # not where only packed files are
        print(
            f"official score: CITYSCAPES_DATASET={truth.parents[1]} "
            f"CITYSCAPES_RESULTS={predictions} CITYSCAPES_EXPORT_DIR={pictures} "
            "csEvalPixelLevelSemanticLabeling"
        )


def start_folder(folder: Path) -> Path:
    """An empty folder beside `folder`, to be filled and then swapped in."""
    fresh = folder.with_name(f".{folder.name}-new")
    shutil.rmtree(fresh, ignore_errors=True)
    make_folder(fresh)
    return fresh


def swap_in(fresh: Path, folder: Path) -> None:
    """Put the filled folder in place of an older one."""
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(fresh, folder)


def main() -> None:
    evaluate_checkpoint(parse(EvalConfig, __doc__))


if __name__ == "__main__":
    run_command(main)
