"""Compute the official Cityscapes score of predictions: one label id PNG per image, or segments.

    python evaluation/score.py --predictions DIR
    python evaluation/score.py --predictions DIR --data_root /data/cityscapes --json score.json
    python evaluation/score.py --predictions DIR --check_official true
    python evaluation/score.py --predictions DIR --subset true     some images only: not official
    python evaluation/score.py --predictions DIR --panoptic true   segments: PNGs and a JSON file
    python evaluation/score.py --predictions FILE.json --panoptic true --truth panoptic_val2017.json

Computes the scores of csEvalPixelLevelSemanticLabeling, and pixel accuracy, mean class accuracy,
frequency-weighted IoU, kappa and, with --boundary_width, boundary IoU; with --panoptic those of
csEvalPanopticSemanticLabeling, and what became of the true segments. Needs numpy, opencv-python,
tqdm and cityscapesscripts, but no torch. To use it in another project, copy this file, counts.py,
metrics.py, official.py, panoptic_files.py, panoptic_quality.py, plots.py, prediction_files.py, all
of utils/base/, and from utils/data/ cityscapes.py, class_weights.py, dataset.py, image_files.py,
label_table.py and sources.py.
"""

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # else Python looks for modules in evaluation/ first
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

import cv2

from evaluation.metrics import compute_scores
from evaluation.official import (
    largest_difference,
    official_results,
    run_panoptic_referee,
    run_referee,
)
from evaluation.panoptic_files import (
    categories_of,
    cityscapes_truth,
    count_all,
    find_predictions,
    match,
    read_format,
)
from evaluation.panoptic_quality import fates_table, panoptic_results, panoptic_table
from evaluation.plots import plot_confusion, plot_fates
from evaluation.prediction_files import check_header, count_pairs, find_truth, match_predictions
from utils.base.errors import Faults, UserError, run_command
from utils.base.paths import REPOSITORY, require_file_name, resolve_data_folder, to_path, write_json
from utils.data.cityscapes import first_folder
from utils.data.label_table import CITYSCAPES


class ScoreParser(argparse.ArgumentParser):
    """argparse that reports an error in one line, without the usage text."""

    def error(self, message: str) -> None:
        raise UserError(f"{self.prog}: {message}. Options: {self.prog} --help")


def parse_options() -> argparse.Namespace:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < 1:
            raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
        return int(text)

    parser = ScoreParser(description=__doc__.split("\n", 1)[0])
    add = parser.add_argument
    text = "Folder with one <city>_<sequence>_<frame>*.png of label ids per image. "
    text += "Default: the latest output of eval_on_val_for_metrics.py."
    add("--predictions", type=to_path, metavar="DIR", help=text)
    text = "Folder of Cityscapes. Default: $CITYSCAPES_DATASET, else data/cityscapes."
    add("--data_root", type=to_path, metavar="DIR", help=text)
    add("--split", choices=("val", "train"), default="val", help="Split to score; default: val.")
    text = "Write the results in the layout of the official scorer's JSON file."
    add("--json", type=to_path, metavar="FILE", help=text)
    text = "Draw the confusion matrix (needs matplotlib)."
    add("--confusion", type=to_path, metavar="FILE.png", help=text)
    text = "Also compute boundary IoU, over the pixels at most this far from a class border; Cheng "
    text += "et al. (2021) use 0.5 %% of the image diagonal on Cityscapes: 11."
    add("--boundary_width", type=number, metavar="PIXELS", help=text)
    text = "Threads that read and count. Default: one per core."
    add("--workers", type=number, default=os.cpu_count() or 1, metavar="N", help=text)
    text = "Also run the official scorer and compare the results."
    add("--check_official", choices=("true", "false"), default="false", help=text)
    text = "Score segments: predictions in COCO's panoptic format, a JSON file and RGB PNGs."
    add("--panoptic", choices=("true", "false"), default="false", help=text)
    text = "True segments in COCO's panoptic format. Default: instanceIds of --data_root."
    add("--truth", type=to_path, metavar="FILE.json", help=text)
    text = "Draw what became of the true segments (needs matplotlib)."
    add("--segments", type=to_path, metavar="FILE.png", help=text)
    text = "Score only the images that have a prediction; the result is not the official score."
    add("--subset", choices=("true", "false"), default="false", help=text)
    return parser.parse_args()


def say(text: str, note: str) -> None:
    """Print `text` with the note after each line."""
    print("\n".join(f"{line:<40}  ({note})" if note else line for line in text.splitlines()))


def main() -> None:
    options = parse_options()
    cv2.setNumThreads(0)  # the worker threads already use the cores
    semantic = {"--confusion": options.confusion, "--boundary_width": options.boundary_width}
    others = {"--truth": options.truth, "--segments": options.segments}
    panoptic = options.panoptic == "true"
    latest = f"model_eval_val_{'panoptic' if panoptic else 'for_metrics'}"
    options.predictions = options.predictions or REPOSITORY / "training_logs" / latest
    if odd := [name for name, value in (semantic if panoptic else others).items() if value]:
        raise UserError(f"{odd[0]}: only {'without' if panoptic else 'with'} --panoptic true")
    (score_segments if panoptic else score_labels)(options)


def score_labels(options: argparse.Namespace) -> None:
    root = resolve_data_folder("cityscapes", options.data_root, "CITYSCAPES_DATASET")
    truth, subset = find_truth(root, options.split), options.subset == "true"
    if subset and options.check_official == "true":
        raise UserError("--subset: the official scorer needs all images. Omit --check_official")
    pairs = match_predictions(options.predictions, truth, subset=subset)
    note = "" if len(pairs) == len(truth) else f"not official, {len(pairs)} of {len(truth)} images"
    classes = CITYSCAPES
    if pairs[0][1].name.endswith("_labelIds.png"):
        classes = CITYSCAPES.without_instances()
        say(f"{root}: no instanceIds, scored against labelIds: nIoU is left out", note)
    for path in filter(None, (options.json, options.confusion)):
        require_file_name(path)
    for pair in pairs:
        check_header(pair)
    counts = count_pairs(pairs, border=options.boundary_width or 0, workers=options.workers)
    scores = compute_scores(counts, classes)
    results = official_results(scores) | ({"subset": note} if note else {})
    say(scores.table(), note)
    writers = {
        options.json: lambda file: write_json(file, results | {"scores": scores.plain()}),
        options.confusion: lambda file: plot_confusion(counts.confusion, CITYSCAPES, file),
    }
    referee = partial(run_referee, *map(list, zip(*pairs, strict=True)))
    finish(options, results, writers, referee)


def score_segments(options: argparse.Namespace) -> None:
    if options.subset == "true":
        raise UserError("--subset: only without --panoptic true")
    root = options.truth
    if root is None:
        root = resolve_data_folder("cityscapes", options.data_root, "CITYSCAPES_DATASET")
        truth, categories = cityscapes_truth(root, options.split), categories_of(CITYSCAPES)
        root = first_folder(root, "gtFine", options.split).parent
    else:
        truth, categories = read_format(root)
    predictions = find_predictions(options.predictions)
    pairs = match(truth, read_format(predictions, categories)[0], predictions)
    for path in filter(None, (options.json, options.segments)):
        require_file_name(path)
    counts = count_all(pairs, categories, workers=options.workers)
    results = panoptic_results(counts, categories)
    print(panoptic_table(results, categories), fates_table(counts, categories), sep="\n\n")
    writers = {
        options.json: lambda file: write_json(file, results),
        options.segments: lambda file: plot_fates(counts, categories, file),
    }
    referee = partial(run_panoptic_referee, predictions, root, options.split)
    finish(options, results, writers, referee)


def finish(
    options: argparse.Namespace,
    results: dict[str, Any],
    writers: dict[Path | None, Callable[[Path], None]],
    referee: Callable[[], dict[str, Any]],
) -> None:
    """Write the files that were asked for, and compare with the official scorer."""
    faults = Faults()
    for file, write in writers.items():
        if file is not None:
            faults.attempt(file, write, file)
    if options.check_official == "true":
        difference, numbers = largest_difference(results, referee())
        print(f"largest difference to the official scorer in {numbers} results: {difference:g}")
        if difference > 1e-12:
            sys.exit(1)
    if faults.left_out:
        raise UserError("score.py: some files were not written, see above. Give other files")


if __name__ == "__main__":
    run_command(main)
