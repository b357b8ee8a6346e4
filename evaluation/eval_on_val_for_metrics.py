"""Score a checkpoint on the val split and write its predictions for the official scorer.

    python evaluation/eval_on_val_for_metrics.py                       best checkpoint, newest run
    python evaluation/eval_on_val_for_metrics.py --checkpoint RUN
    python evaluation/eval_on_val_for_metrics.py --checkpoint model.pth --data_root /data/cityscapes
    torchrun --standalone --nproc-per-node 4 evaluation/eval_on_val_for_metrics.py      four GPUs

Writes, in training_logs/: model_eval_val_for_metrics/<img_id>_pred_label_img.png (label ids, full
size) and model_eval_val/<img_id>_overlayed.png, scores.json, confusion.png.
"""

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

if __name__ == "__main__":  # run by path, Python looks for modules in evaluation/ first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from evaluation.counts import Counts
from evaluation.evaluate import evaluate
from evaluation.inference import Trained
from evaluation.visualize import overlay, save_ids, save_png
from utils import distributed
from utils.class_weights import read_class_weights
from utils.config import DatasetName, PredictionOptions
from utils.distributed import World
from utils.errors import UserError, run_command
from utils.files import (
    first_folder,
    make_folder,
    resolve_log_root,
    write_json,
)
from utils.parser import check, parse
from utils.plots import plot_confusion


@dataclass(frozen=True)
class EvalConfig(PredictionOptions):
    """Options of eval_on_val_for_metrics.py."""

    dataset: DatasetName | None = None
    """Data set to score on. Default: the one the checkpoint was trained on."""
    split: Literal["val", "test"] = "val"
    """Part of the data set; test only where its labels are public (camvid)."""
    overlays: bool = True
    """Also write pictures of the predictions over the images."""
    boundary_width: int | None = None
    """Also compute boundary IoU, counting pixels this close to a border; Cheng et al. (2021) take
    0.5 % of the diagonal on Cityscapes: 11."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "boundary_width", lambda width: width >= 1, "at least 1")


def evaluate_checkpoint(config: EvalConfig) -> None:
    trained = Trained.open(config, together=True)
    log_root, root = resolve_log_root(config.log_root), trained.root(config.dataset)
    dataset = trained.dataset(config.split, config.dataset)
    world = trained.world
    if world.is_main:
        print(f"checkpoint {trained.path} (step {trained.state['step']})")
        print(f"on {len(dataset)} images of {root}, {dataset.source}")
    weights = None
    if trained.state["config"]["class_weights"] and config.split == "val":
        try:
            weights = read_class_weights(root, dataset.classes).to(world.device)
        except UserError:  # of a val split alone; only the loss needs them
            print("the loss is without class weights: this data set was not preprocessed")

    predictions = log_root / "model_eval_val_for_metrics"
    pictures = log_root / "model_eval_val"
    new_predictions, new_pictures = (start_folder(x, world) for x in (predictions, pictures))
    index = {name: number for number, name in enumerate(dataset.names)}

    def write(name: str, _counts: Counts, labels: np.ndarray) -> None:
        save_ids(new_predictions / f"{name}_pred_label_img.png", labels, dataset.classes)
        if config.overlays:
            image = dataset.image(index[name])
            save_png(
                new_pictures / f"{name}_overlayed.png", overlay(image, labels, dataset.classes)
            )

    scores = evaluate(
        trained.model,
        dataset,
        world=world,
        amp=trained.amp,
        class_weights=weights,
        workers=config.workers,
        border=config.boundary_width or 0,
        on_image=write,
        **trained.options,
    )
    distributed.wait_for_all(world)  # until every process has written its images
    distributed.stop(world)
    if not world.is_main:
        return
    write_json(new_pictures / "scores.json", {"checkpoint": str(trained.path), **scores.plain()})
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


def start_folder(folder: Path, world: World) -> Path:
    """An empty folder beside `folder`, to be filled by all processes and then swapped in."""
    fresh = folder.with_name(f".{folder.name}-new")
    if world.is_main:
        shutil.rmtree(fresh, ignore_errors=True)
        make_folder(fresh)
    distributed.wait_for_all(world)
    return fresh


def swap_in(fresh: Path, folder: Path) -> None:
    """Put the filled folder in place of an older one."""
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(fresh, folder)


def main() -> None:
    evaluate_checkpoint(parse(EvalConfig, __doc__))


if __name__ == "__main__":
    run_command(main)
