"""The official Cityscapes score of anyone's predictions: label id PNGs, one per image.

    python evaluation/score.py --predictions DIR
    python evaluation/score.py --predictions DIR --data_root /data/cityscapes --json score.json
    python evaluation/score.py --predictions DIR --check_official true
    python evaluation/score.py --predictions DIR --subset true     some images only: not official

Counts what csEvalPixelLevelSemanticLabeling counts, and adds pixel accuracy, mean class accuracy,
frequency-weighted IoU, kappa and, if asked, boundary IoU. Needs numpy, opencv-python, tqdm and
cityscapesscripts only, no torch: for another project take this file with counts.py, metrics.py,
official.py, plots.py and prediction_files.py beside it, utils/base/ and, of utils/data/,
cityscapes.py, class_weights.py, dataset.py, image_files.py, label_table.py and sources.py.
"""

import argparse
import os
import sys
from pathlib import Path

if __name__ == "__main__":  # run by path, Python looks for modules in evaluation/ first
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

import cv2

from evaluation.metrics import compute_scores
from evaluation.official import largest_difference, official_results, run_referee
from evaluation.plots import plot_confusion
from evaluation.prediction_files import check_header, count_pairs, find_truth, match_predictions
from utils.base.errors import Faults, UserError, run_command
from utils.base.paths import REPOSITORY, require_file_name, resolve_data_folder, to_path, write_json
from utils.data.label_table import CITYSCAPES


class ScoreParser(argparse.ArgumentParser):
    """argparse that says in one line what is wrong, without the whole usage."""

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
    text += "Default: what eval_on_val_for_metrics.py wrote last."
    default = REPOSITORY / "training_logs" / "model_eval_val_for_metrics"
    add("--predictions", type=to_path, metavar="DIR", default=default, help=text)
    text = "Folder of Cityscapes. Default: $CITYSCAPES_DATASET, else data/cityscapes."
    add("--data_root", type=to_path, metavar="DIR", help=text)
    add("--split", choices=("val", "train"), default="val", help="Part of the data; default: val.")
    text = "Write the results in the layout of the official scorer's JSON file."
    add("--json", type=to_path, metavar="FILE", help=text)
    text = "Draw the confusion matrix (needs matplotlib)."
    add("--confusion", type=to_path, metavar="FILE.png", help=text)
    text = "Also compute boundary IoU, counting pixels this close to a border; Cheng et al. "
    text += "(2021) take 0.5 %% of the diagonal on Cityscapes: 11."
    add("--boundary_width", type=number, metavar="PIXELS", help=text)
    text = "Threads that read and count. Default: one per core."
    add("--workers", type=number, default=os.cpu_count() or 1, metavar="N", help=text)
    text = "Run the official scorer as well and compare."
    add("--check_official", choices=("true", "false"), default="false", help=text)
    text = "Score only the images that have a prediction, which is not the official score."
    add("--subset", choices=("true", "false"), default="false", help=text)
    return parser.parse_args()


def say(text: str, note: str) -> None:
    """Print lines, each of them with the note."""
    print("\n".join(f"{line:<40}  ({note})" if note else line for line in text.splitlines()))


def main() -> None:
    options = parse_options()
    cv2.setNumThreads(0)  # the workers are the parallelism
    root = resolve_data_folder("cityscapes", options.data_root, "CITYSCAPES_DATASET")
    truth, subset = find_truth(root, options.split), options.subset == "true"
    if subset and options.check_official == "true":
        raise UserError("--subset: the official scorer scores all. Leave --check_official out")
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
    faults, (file, picture) = Faults(), (options.json, options.confusion)
    if file:
        faults.attempt(file, write_json, file, results | {"scores": scores.plain()})
    if picture:
        faults.attempt(picture, plot_confusion, counts.confusion, CITYSCAPES, picture)
    if options.check_official == "true":
        official = run_referee(*map(list, zip(*pairs, strict=True)))
        difference, numbers = largest_difference(results, official)
        print(f"largest difference to the official scorer in {numbers} results: {difference:g}")
        if difference > 1e-12:
            sys.exit(1)
    if faults.left_out:
        raise UserError("score.py: files were left out, see above. Give other files")


if __name__ == "__main__":
    run_command(main)
