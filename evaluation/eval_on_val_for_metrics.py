"""Score a checkpoint on the val split and write its predictions for the official scorer.

    python evaluation/eval_on_val_for_metrics.py                       best checkpoint, newest run
    python evaluation/eval_on_val_for_metrics.py --checkpoint RUN
    python evaluation/eval_on_val_for_metrics.py --checkpoint model.pth --data_root /data/cityscapes
    torchrun --standalone --nproc-per-node 4 evaluation/eval_on_val_for_metrics.py      four GPUs

Writes to training_logs/: model_eval_val_for_metrics/<img_id>_pred_label_img.png (label ids, full
size) and model_eval_val/<img_id>_overlayed.png, scores.json, confusion.png. A panoptic network's
segments go to model_eval_val_panoptic/, in COCO's format.
"""

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from shlex import join, quote

if __name__ == "__main__":  # else Python looks for modules in evaluation/ first
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

import torch

from datasets import find_data_set
from evaluation.counts import Counts
from evaluation.metrics import json_safe
from evaluation.panoptic_files import SegmentWriter
from evaluation.plots import plot_confusion
from evaluation.semantic import Counted
from evaluation.task import Prediction, Sample
from evaluation.trained import ScoringOptions, Trained
from evaluation.visualize import overlay, save_as_ids
from utils.base.errors import UserError, run_command
from utils.base.lock import hold
from utils.base.parser import check, parse
from utils.base.paths import make_folder, resolve_log_root, write_json, writing
from utils.data.cityscapes import first_folder
from utils.data.image_files import write_png
from utils.data.label_table import LabelTable
from utils.data.prepare import chosen_class_weights
from utils.training import distributed


@dataclass(frozen=True)
class EvalConfig(ScoringOptions):
    """Options of eval_on_val_for_metrics.py."""

    overlays: bool = True
    """Also write the images with the predictions drawn over them."""
    boundary_width: int | None = None
    """Also compute boundary IoU, over the pixels at most this far from a class border; Cheng et al.
    (2021) use 0.5 % of the image diagonal on Cityscapes: 11."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "boundary_width", lambda width: width >= 1, "at least 1")


def main() -> None:
    config = parse(EvalConfig, __doc__)
    log_root = resolve_log_root(config.log_root)
    with hold(log_root, enabled=os.environ.get("RANK", "0") == "0"):  # only torchrun's main process
        score(config, log_root)


def score(config: EvalConfig, log_root: Path) -> None:
    trained = Trained.open(config, together=True)
    root, dataset = trained.root, trained.dataset(config.split)
    world, task, classes = trained.world, trained.task, dataset.classes
    if world.is_main:
        print(f"checkpoint {trained.path} (step {trained.state['step']})")
        print(f"on {len(dataset)} images of {root}, {dataset.source}")
    names = ["model_eval_val_for_metrics", "model_eval_val"]  # may be links to another disk
    names += ["model_eval_val_panoptic"] if task.segments else []
    folders = [Path(os.path.realpath(log_root / x)) for x in names]
    predictions, pictures = folders[:2]
    if odd := [x for x in folders if x.is_mount() or (x.exists() and not x.is_dir())]:
        raise UserError(f"{odd[0]}: cannot be replaced. Move it, or give another --log_root")
    # All processes write to new folders, which replace the old ones at the end.
    fresh = {folder: folder.with_name(f".{folder.name}-new") for folder in folders}
    if world.is_main:
        for folder in fresh.values():
            shutil.rmtree(folder, ignore_errors=True)
            make_folder(folder)
    distributed.wait_for_all(world)

    indices = {name: index for index, name in enumerate(dataset.names)}
    groups = find_data_set(trained.dataset_name, root).groups(root, config.split)
    groups = {name: group for name, group in groups.items() if name in indices}
    counted = {group: Counted(classes) for group in sorted({*groups.values()})}
    writer = SegmentWriter(fresh[folders[-1]], classes)

    def write(sample: Sample, counts: Counts, prediction: Prediction) -> None:
        name = sample["name"]
        if name in groups:
            counted[groups[name]].add(indices[name], counts)
        path = fresh[predictions] / f"{name}_pred_label_img.png"
        save_as_ids(path, task.train_ids(prediction), classes)
        if task.segments:
            writer.add(name, task.segments(prediction))
        if config.overlays:
            picture = overlay(sample["image"], task.paint(prediction, classes))
            write_png(fresh[pictures] / f"{name}_overlayed.png", picture)

    border = config.boundary_width or 0
    weights = loss_weights(trained) if config.split == "val" else None
    scores = trained.evaluate(dataset, class_weights=weights, border=border, on_image=write)
    distributed.wait_for_all(world)  # every process must have written its images
    totals = {name: task.total(own, classes, world) for name, own in counted.items()}
    of_groups = {name: task.scores(total, classes).best for name, total in totals.items()}
    images = distributed.gather_over_ranks(writer.images, world)
    distributed.stop(world)
    if not world.is_main:
        return
    contents = trained.origin | {"split": config.split} | scores.plain()
    contents |= {"groups": json_safe(of_groups)} if of_groups else {}
    write_json(fresh[pictures] / "scores.json", contents)
    if task.segments:
        writer.finish({name: x for part in images for name, x in part.items()})
    plot_confusion(scores.counts.confusion, classes, fresh[pictures] / "confusion.png")
    for folder, filled in fresh.items():
        with writing(folder):
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(filled, folder)
    print(scores.table())
    for name, score in of_groups.items():
        number = sum(group == name for group in groups.values())
        print(f"{name:<14}: {score:>5.3f}    {number} images")
    print(f"\npredictions: {predictions}\npictures and scores.json: {pictures}")
    if task.segments:
        print(f"segments: {folders[-1]}")
    print_official(root, classes, folders)


def loss_weights(trained: Trained) -> torch.Tensor | None:
    """The class weights of the training's loss."""
    config, root = trained.state["config"], trained.root
    if not config["class_weights"]:
        return None
    data_set = find_data_set(trained.dataset_name, root)
    try:
        weights = chosen_class_weights(config["class_weights"], data_set, root)
    except UserError as error:  # the data set may hold val only; only the loss needs weights
        print(f"the loss is without class weights: {error}")
        return None
    weights **= config.get("class_weight_power", 1.0)
    return torch.from_numpy(weights).to(trained.world.device)


def print_official(root: Path, classes: LabelTable, folders: list[Path]) -> None:
    """The official scorers' commands for the folders of predictions, pictures[, segments]."""
    truth = first_folder(root, "gtFine", "val")
    if truth.is_dir() and classes.instance_sizes:  # the official scorer needs both
        names = ("RESULTS", "EXPORT_DIR")
        paths = {"DATASET": truth.parents[1], **dict(zip(names, folders, strict=False))}
        words = [f"CITYSCAPES_{name}={quote(str(path))}" for name, path in paths.items()]
        print("official score:", *words, "csEvalPixelLevelSemanticLabeling")
        if len(folders) > 2:
            top = truth.parent
            convert = ["csCreatePanopticImgs", "--dataset-folder", str(top), "--set-names", "val"]
            words = ["--gt-json-file", str(top / "cityscapes_panoptic_val.json")]
            words += ["--prediction-json-file", str(folders[2] / "panoptic.json")]
            print("official panoptic score:", join(convert), "&&")
            print("    csEvalPanopticSemanticLabeling", join(words))


if __name__ == "__main__":
    run_command(main)
