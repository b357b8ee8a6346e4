"""The official Cityscapes score of anyone's predictions: label id PNGs, one per image.

    python evaluation/score.py --predictions DIR
    python evaluation/score.py --predictions DIR --data_root /data/cityscapes --json score.json
    python evaluation/score.py --predictions DIR --check_official true

Counts what csEvalPixelLevelSemanticLabeling counts, and adds pixel accuracy, mean class accuracy,
frequency-weighted IoU, kappa and, if asked, boundary IoU. Needs numpy, opencv-python, tqdm and
cityscapesscripts only: for another project take this file with evaluation/counts.py,
evaluation/metrics.py, evaluation/official.py and utils/errors.py, files.py, labels.py, plots.py,
progress.py.
"""

import argparse
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

if __name__ == "__main__":  # run by path, Python looks for modules in evaluation/ first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import cv2
import numpy as np

from evaluation.counts import Counts, count_pixels
from evaluation.metrics import compute_scores
from evaluation.official import largest_difference, official_results, run_referee
from utils.errors import UserError, run_command
from utils.files import (
    GREY,
    REPOSITORY,
    first_folder,
    read_grey,
    read_png_header,
    resolve_data_root,
    write_json,
)
from utils.labels import CITYSCAPES
from utils.progress import progress

Pair = tuple[Path, Path]  # prediction, *_gtFine_instanceIds.png
CONVERT = "Map train ids to label ids: CITYSCAPES.ids[prediction] of utils/labels.py"


def find_truth(root: Path, split: str) -> dict[str, Path]:
    """Image name, <city>_<sequence>_<frame> -> its instance id file."""
    ending = "_gtFine_instanceIds.png"
    folder = first_folder(root, "gtFine", split)
    found = {path.name.removesuffix(ending): path for path in sorted(folder.glob(f"*/*{ending}"))}
    if not found:
        raise UserError(f"{folder}: no */*{ending}. Name the data set's folder with --data_root")
    return found


def match_predictions(folder: Path, truth: dict[str, Path]) -> list[Pair]:
    """Every image with its one prediction, found by name in any sub-folder, as the referee does."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder. Name the predictions with --predictions")
    found: dict[str, Path] = {}
    extra = []
    for path in sorted(folder.rglob("*.png")):
        name = "_".join(path.stem.split("_")[:3])
        if name in found:
            raise UserError(f"{path}: second prediction for {name} beside {found[name]}. Keep one")
        if name in truth:
            found[name] = path
        else:
            extra.append(path)
    missing = [name for name in truth if name not in found]
    if missing:
        count = f"{len(missing)} of {len(truth)} images have no prediction {missing[0]}*.png"
        raise UserError(f"{folder}: {count}. Write one label id PNG per image")
    if extra:
        count = f"{extra[0]}: belongs to no image of the split ({len(extra)} such files)"
        raise UserError(f"{count}. Move it out of {folder}, or name its --split")
    return [(found[name], path) for name, path in truth.items()]


def check_header(pair: Pair) -> None:
    """UserError unless the prediction is a one-channel 8-bit PNG of its truth's size."""
    prediction, truth = map(read_png_header, pair)
    if prediction.color != GREY or prediction.bits != 8:
        advice = "Save label ids as a one-channel 8-bit PNG"
        raise UserError(f"{pair[0]}: {prediction.kind}, not label ids. {advice}")
    if prediction.size != truth.size:
        sizes = " instead of ".join(f"{w} x {h}" for h, w in (prediction.size, truth.size))
        raise UserError(f"{pair[0]}: {sizes} pixels. Scale predictions up with nearest neighbour")


def count_pair(pair: Pair, *, border: int) -> Counts:
    """Counts of one image; UserError where its pixels are no label ids."""
    prediction, truth = read_grey(pair[0], np.uint8), read_grey(pair[1], np.uint16)
    largest, known = int(prediction.max()), CITYSCAPES.num_ids - 1
    if largest > known:
        hint = CONVERT if largest == 255 else "Write label ids"
        raise UserError(f"{pair[0]}: id {largest}, but label ids are 0 to {known}. {hint}")
    try:
        return count_pixels(truth, prediction, CITYSCAPES, border=border)
    except ValueError as error:
        raise UserError(f"{pair[1]}: {error}. Restore the file") from error


def holds_train_ids(confusion: np.ndarray) -> bool:
    """Whether predictions use ids that nobody predicts and agree with the truth as train ids."""
    used, ids = np.flatnonzero(confusion.sum(0)), CITYSCAPES.ids
    if used.max() >= len(ids) or set(used.tolist()) <= {0, *ids.tolist()}:
        return False
    return confusion[ids, np.arange(len(ids))].sum() > confusion[ids, ids].sum()


def count_pairs(pairs: list[Pair], *, border: int = 0, workers: int = 1) -> Counts:
    """Counts of all pairs; `workers` threads hold one pair of images each."""
    counts: list[Counts] = []
    confusion = np.zeros((CITYSCAPES.num_ids,) * 2, np.int64)
    with (
        ThreadPoolExecutor(workers) as pool,
        progress(len(pairs), unit="image", label="score") as bar,
    ):
        parts = pool.map(partial(count_pair, border=border), pairs)
        for pair, part in zip(pairs, parts, strict=True):
            counts.append(part)
            confusion += part.confusion
            if holds_train_ids(confusion):
                raise UserError(f"{pair[0]}: train ids, the score needs label ids. {CONVERT}")
            bar.update()
    return Counts.total(counts)


class OneLineParser(argparse.ArgumentParser):
    """argparse, with a mistake told in one line instead of the whole usage."""

    def error(self, message: str) -> None:
        raise UserError(f"{self.prog}: {message}. Options: {self.prog} --help")


def parse_options(argv: list[str] | None = None) -> argparse.Namespace:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < 1:
            raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
        return int(text)

    parser = OneLineParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--predictions",
        type=Path,
        metavar="DIR",
        default=REPOSITORY / "training_logs" / "model_eval_val_for_metrics",
        help="Folder with one <city>_<sequence>_<frame>*.png of label ids per image. "
        "Default: what eval_on_val_for_metrics.py wrote last.",
    )
    parser.add_argument(
        "--data_root",
        type=Path,
        metavar="DIR",
        help="Folder of Cityscapes. Default: $CITYSCAPES_DATASET, else data/cityscapes.",
    )
    parser.add_argument(
        "--split",
        choices=("val", "train"),
        default="val",
        help="Part of the data set; val is the default.",
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="Write the results in the layout of the official scorer's JSON file.",
    )
    parser.add_argument(
        "--confusion",
        type=Path,
        metavar="FILE.png",
        help="Draw the confusion matrix (needs matplotlib).",
    )
    parser.add_argument(
        "--boundary_width",
        type=number,
        metavar="PIXELS",
        help="Also compute boundary IoU, counting pixels this close to a border; Cheng et al. "
        "(2021) take 0.5 %% of the diagonal on Cityscapes: 11.",
    )
    parser.add_argument(
        "--workers",
        type=number,
        default=os.cpu_count() or 1,
        metavar="N",
        help="Threads that read and count. Default: one per core.",
    )
    parser.add_argument(
        "--check_official",
        choices=("true", "false"),
        default="false",
        help="Run the official scorer as well and compare.",
    )
    return parser.parse_args(argv)


def main() -> None:
    options = parse_options()
    cv2.setNumThreads(0)  # the workers are the parallelism
    truth = find_truth(resolve_data_root("cityscapes", options.data_root), options.split)
    pairs = match_predictions(options.predictions, truth)
    for path in filter(None, (options.json, options.confusion)):
        if path.is_dir() or not path.resolve().parent.is_dir():
            raise UserError(f"{path}: no file in an existing folder. Name one")
    for pair in pairs:
        check_header(pair)
    counts = count_pairs(pairs, border=options.boundary_width or 0, workers=options.workers)
    scores = compute_scores(counts, CITYSCAPES)
    results = official_results(scores)
    print(scores.table())
    if options.json:
        write_json(options.json, results | {"scores": scores.plain()})
    if options.confusion:
        from utils.plots import plot_confusion  # matplotlib, only when asked

        plot_confusion(scores.counts.confusion, CITYSCAPES, options.confusion)
    if options.check_official == "true":
        for _, path in pairs:
            labels = Path(str(path).replace("_instanceIds", "_labelIds"))
            if not labels.is_file():
                raise UserError(f"{labels}: missing, the official scorer reads it. Unpack gtFine")
        official = run_referee(*map(list, zip(*pairs, strict=True)))
        difference, numbers = largest_difference(results, official)
        print(f"largest difference to the official scorer in {numbers} results: {difference:g}")
        if difference > 1e-12:
            sys.exit(1)


if __name__ == "__main__":
    run_command(main)
